"""A policy's own distribution over the numbers 0.01 .. 0.99 at the place where an answer states its probability."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from eagrl_jax.lm import model
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.forward import forward_shared
from eagrl_jax.lm.logprobs import token_logprobs
from eagrl_jax.lm.tokenizer import Tokenizer
from eagrl_jax.types import Array, Params

TAG = '<Final answer>'
VALUES = np.arange(1, 100) / 100  # those of the search's grammar


def up_to_number(tokenizer: Tokenizer, written: list[int]) -> tuple[list[int], bool]:
  """An answer's tokens up to the place of its number, and whether the tag had to be added."""
  ids = [t for t in written if t not in tokenizer.stop_ids]
  text, spans = tokenizer.decode_with_offsets(ids)
  at = text.rfind(TAG)
  if at < 0:
    return [*ids, *tokenizer.encode(f'\n{TAG}', continues=True)], True
  ends, stop = spans[:, 1], at + len(TAG)
  kept = int(np.sum(ends <= stop))
  covered = int(ends[kept - 1]) if kept else 0
  # A token that holds the end of the tag and what follows it: the tag's part of it is encoded anew.
  return [*ids[:kept], *tokenizer.encode(text[covered:stop], continues=True)], False


def number_tokens(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """All 99 numbers as what they begin with and one last token.

  Returns:
    parents [P, T]: the distinct beginnings, -1 padded, T one more than the longest; parent [99]: whose beginning a
    number has; last [99]: its last token.
  """
  numbers = [tuple(tokenizer.encode(f' {value:.2f}', continues=True)) for value in VALUES]
  heads = sorted({ids[:-1] for ids in numbers})
  parents = np.full((len(heads), max(map(len, heads)) + 1), -1, np.int32)
  for row, head in zip(parents, heads):
    row[:len(head)] = head
  return (parents, np.array([heads.index(ids[:-1]) for ids in numbers], np.int32),
          np.array([ids[-1] for ids in numbers], np.int32))


@functools.partial(jax.jit, static_argnums=1)
def number_logprobs(params: Params, cfg: LMConfig, tokens: Array, valid: Array, parents: Array, parent: Array,
                    last: Array) -> Array:
  """log P(number | text before it) of all numbers at temperature 1. `tokens, valid [B, S]` left-padded `-> [B, 99]`"""
  params = model.as_used(params, cfg)
  b, real = tokens.shape[0], parents >= 0
  heads = jnp.broadcast_to(jnp.maximum(parents, 0)[None], (b, *parents.shape))
  hidden = forward_shared(params, cfg, tokens, valid, heads, jnp.broadcast_to(real[None], heads.shape)).hidden
  begun = jnp.sum(jnp.where(real[None], token_logprobs(params, cfg, hidden, heads)[0], 0), -1)  # [B, P]
  # A state predicts the token at its own place: behind a beginning of n tokens that is place n.
  at = jnp.broadcast_to(real.sum(1)[None, :, None, None], (*heads.shape[:2], 1, hidden.shape[-1]))
  ending = jnp.take_along_axis(hidden, at, 2)[:, :, 0][:, parent]  # [B, 99, D]
  ended, _ = token_logprobs(params, cfg, ending, jnp.broadcast_to(last[None], ending.shape[:2]))
  return begun[:, parent] + ended
