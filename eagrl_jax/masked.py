"""Reductions over the real entries of padded arrays, and the largest of them."""

from __future__ import annotations

from typing import TypeVar

import jax.numpy as jnp
import numpy as np

from eagrl_jax.types import Array, ArrayLike, EagrlError

ArrayT = TypeVar('ArrayT', Array, np.ndarray)

NEG_INF = -1e30  # finite, so that a fully masked row gives zeros and no NaN gradient


def mean(x: Array, mask: ArrayLike, axis: int | tuple[int, ...] | None = None) -> Array:
  """Mean of `x` where `mask` is set; 0 where nothing is. Shapes of `x` and `mask` agree."""
  weight = mask.astype(x.dtype)
  return jnp.sum(x * weight, axis) / jnp.maximum(jnp.sum(weight, axis), 1)


def softmax(scores: Array, mask: Array, axis: int = -1) -> Array:
  """Softmax over the entries where `mask` is set; all zeros where none is."""
  scores = jnp.where(mask, scores, NEG_INF)
  weights = jnp.where(mask, jnp.exp(scores - jnp.max(scores, axis, keepdims=True)), 0)
  return weights / jnp.maximum(jnp.sum(weights, axis, keepdims=True), 1e-30)


def top_k(x: ArrayT, k: int) -> ArrayT:
  """The k largest positive entries along the last axis; ties go to the lower index. `[..., F] -> [..., F] bool`.

  An entry that is not above 0 is never among them. Numpy in gives numpy out, in its own precision.

  Raises:
    EagrlError: k < 1.
  """
  if k < 1:
    raise EagrlError(f'reward.top_k={k} must be at least 1')
  xp = np if isinstance(x, np.ndarray) else jnp
  order = xp.argsort(-x, axis=-1, stable=True)
  return (xp.argsort(order, axis=-1) < k) & (x > 0)
