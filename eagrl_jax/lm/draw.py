"""One token from logits and one uniform a row, without sorting or noising the whole vocabulary."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from eagrl_jax.types import Array

BLOCK = 256
TOP_BLOCK = 64  # of the blocks that top-p looks for its candidates in
COLDEST = 1e-6  # temperature below which nothing changes but that float32 overflows
TOP_P_CANDIDATES = 64  # top-p is taken within the most probable 64


def sample_from_logits(logits: Array, u: Array, temperature: float | Array = 1.0, top_p: float = 1.0) -> Array:
  """Inverts the cumulative distribution of each row at `u`.

  Args:
    logits: `[R, V]`; -inf forbids a token, and at least one of a row is finite.
    u: `[R]` uniform in [0, 1).
    temperature: divides the logits, one number or `[R]`; the Python number 0 takes the argmax.
    top_p: keeps the smallest set of most probable tokens with this mass, out of the first 64; 1 keeps all.

  Returns:
    Token ids `[R]`, int32. A token of probability 0 is never returned.
  """
  if isinstance(temperature, (int, float)) and temperature == 0:
    return jnp.argmax(logits, -1).astype(jnp.int32)
  temperature = jnp.maximum(jnp.reshape(jnp.asarray(temperature, jnp.float32), (-1, 1)), COLDEST)
  weight = jnp.exp((logits - logits.max(-1, keepdims=True)) / temperature)
  if top_p >= 1:
    return _two_level(weight, u)
  top, ids = _top(weight, min(TOP_P_CANDIDATES, weight.shape[-1]))
  before = jnp.cumsum(top, -1) - top
  top = jnp.where(before < top_p * weight.sum(-1, keepdims=True), top, 0)
  place, _ = _invert(top, u * top.sum(-1))
  return jnp.take_along_axis(ids, place[:, None], -1)[:, 0].astype(jnp.int32)


def _top(weight: Array, k: int) -> tuple[Array, Array]:
  """The k largest of each row and their places: only the k blocks with the largest maxima can hold them."""
  r, v = weight.shape
  n = -(-v // TOP_BLOCK)
  if n <= 4 * k:
    return jax.lax.top_k(weight, k)
  blocks = jnp.pad(weight, ((0, 0), (0, n * TOP_BLOCK - v))).reshape(r, n, TOP_BLOCK)
  block = jnp.sort(jax.lax.top_k(blocks.max(-1), k)[1], -1)  # in order, so that equal weights keep theirs
  top, place = jax.lax.top_k(jnp.take_along_axis(blocks, block[..., None], 1).reshape(r, -1), k)
  return top, jnp.take_along_axis(block, place // TOP_BLOCK, 1) * TOP_BLOCK + place % TOP_BLOCK


def _two_level(weight: Array, u: Array) -> Array:
  """First the block of the vocabulary, from the sums of the blocks, then the token inside it."""
  r, v = weight.shape
  n = -(-v // BLOCK)
  blocks = (jnp.pad(weight, ((0, 0), (0, n * BLOCK - v))) if v % BLOCK else weight).reshape(r, n, BLOCK)
  sums = blocks.sum(-1)
  block, rest = _invert(sums, u * sums.sum(-1))
  inside = jnp.take_along_axis(blocks, block[:, None, None], 1)[:, 0]
  place, _ = _invert(inside, rest)
  return jnp.minimum(block * BLOCK + place, v - 1).astype(jnp.int32)  # of a row of NaN nothing is found


def _invert(mass: Array, target: Array) -> tuple[Array, Array]:
  """First index whose cumulative mass passes `target`, and what of the target it leaves; never one without mass.

  Rounding can put the target past the last cumulative sum: then the last index with mass is taken.
  """
  size = mass.shape[-1]
  total = jnp.cumsum(mass, -1)
  hit = (total > target[:, None]) & (mass > 0)
  last = size - 1 - jnp.argmax(jnp.flip(mass > 0, -1), -1)
  index = jnp.where(hit.any(-1), jnp.argmax(hit, -1), last)
  before = jnp.take_along_axis(total - mass, index[:, None], -1)[:, 0]
  return index, target - before
