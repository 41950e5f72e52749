"""Reductions over the real entries of padded arrays."""

from __future__ import annotations

import jax.numpy as jnp

from eagrl_jax.types import Array

NEG_INF = -1e30  # finite, so that a fully masked row gives zeros and no NaN gradient


def mean(x: Array, mask: Array, axis: int | tuple[int, ...] | None = None) -> Array:
  """Mean of `x` where `mask` is set; 0 where nothing is. Shapes of `x` and `mask` agree."""
  weight = mask.astype(x.dtype)
  return jnp.sum(x * weight, axis) / jnp.maximum(jnp.sum(weight, axis), 1)


def softmax(scores: Array, mask: Array, axis: int = -1) -> Array:
  """Softmax over the entries where `mask` is set; all zeros where none is."""
  scores = jnp.where(mask, scores, NEG_INF)
  weights = jnp.where(mask, jnp.exp(scores - jnp.max(scores, axis, keepdims=True)), 0)
  return weights / jnp.maximum(jnp.sum(weights, axis, keepdims=True), 1e-30)
