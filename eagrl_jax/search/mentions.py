"""Finds feature names in generated tokens, on the device.

A name is looked for as the token sequences of its usual spellings. A match must end at a
word's end and, when it carries no leading space, begin at a word's beginning. Where names
overlap the longest wins: 'direct bilirubin' is no mention of 'bilirubin'.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from eagrl_jax.lm.tokenizer import Tokenizer
from eagrl_jax.types import Array, ArrayLike


@struct.dataclass
class Mentions:
  """P spellings of up to W tokens."""

  token: ArrayLike  # [P, W] int32, -1 padded
  length: ArrayLike  # [P] int32
  feature: ArrayLike  # [P] int32
  spaced: ArrayLike  # [P] bool, the spelling begins with a space
  begins_word: ArrayLike  # [V] bool, the token's text begins with a letter or digit
  ends_word: ArrayLike  # [V] bool, it ends with one
  n_features: int = struct.field(pytree_node=False)


def compile_mentions(tokenizer: Tokenizer, names: tuple[str, ...], pieces: list[str]) -> Mentions:
  """Spellings: as given, lower case, first letter upper case; each with and without a leading space.

  Where the tokenizer merges a name's end with the punctuation after it, that is a spelling too.

  Args:
    pieces: text of every id of the vocabulary.
  """
  encode = functools.partial(tokenizer.encode, continues=True)
  spellings: dict[tuple[int, ...], tuple[int, bool]] = {}
  for feature, name in enumerate(names):
    for text in (name, name.lower(), name[:1].upper() + name[1:]):
      for space in (' ', ''):
        plain = encode(space + text)
        merged = [ids for mark in ',.;:?' if (ids := encode(space + text + mark))[:len(plain)] != plain]
        for ids in (plain, *merged):
          spellings.setdefault(tuple(ids), (feature, space == ' '))
  width = max(map(len, spellings))
  return Mentions(
      token=np.array([[*s, *[-1] * (width - len(s))] for s in spellings], np.int32),
      length=np.array([len(s) for s in spellings], np.int32),
      feature=np.array([f for f, _ in spellings.values()], np.int32),
      spaced=np.array([s for _, s in spellings.values()]),
      begins_word=np.array([p[:1].isalnum() for p in pieces]),
      ends_word=np.array([p[-1:].isalnum() for p in pieces]),
      n_features=len(names))


def find(mentions: Mentions, tokens: Array, length: Array) -> Array:
  """Which features each row mentions.

  Args:
    tokens: `[R, S]` int32, right-padded.
    length: `[R]` real tokens.

  Returns:
    `[R, F]` bool.
  """
  n_slots, width = tokens.shape[1], mentions.token.shape[1]
  slots = jnp.arange(n_slots)
  inside = slots[None, :] < length[:, None]
  padded = jnp.pad(jnp.where(inside, tokens, -2), ((0, 0), (0, width)), constant_values=-2)
  size = jnp.asarray(mentions.length)
  match = jnp.ones((*tokens.shape, size.shape[0]), bool)  # [R, S, P]
  for i in range(width):
    wanted = jnp.asarray(mentions.token)[:, i]
    match &= (padded[:, i:i + n_slots, None] == wanted[None, None, :]) | (wanted < 0)[None, None, :]

  starts = inside & jnp.asarray(mentions.begins_word)[tokens]
  ends = inside & jnp.asarray(mentions.ends_word)[tokens]
  after = jnp.minimum(slots[:, None] + size[None, :], n_slots)  # [S, P]
  continued = jnp.pad(starts, ((0, 0), (0, 1)))[:, after]
  glued = jnp.pad(ends, ((0, 0), (1, 0)))[:, :n_slots, None] & ~jnp.asarray(mentions.spaced)[None, None, :]
  match &= ~continued & ~glued

  end = (slots[:, None] + size[None, :])[None]  # [1, S, P]
  furthest = jnp.max(jnp.where(match, end, 0), 2)  # [R, S] end of the longest match that begins here
  before = jnp.pad(lax.cummax(furthest, axis=1), ((0, 0), (1, 0)))[:, :n_slots]
  match &= (end >= furthest[:, :, None]) & (end > before[:, :, None])
  said = jnp.any(match, 1)  # [R, P]
  hits = jnp.zeros((tokens.shape[0], mentions.n_features), bool)
  return hits.at[:, jnp.asarray(mentions.feature)].max(said)
