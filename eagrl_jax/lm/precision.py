"""Sums, norms and log-probabilities are computed in float32 at least, whatever the activations are."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import DTypeLike

from eagrl_jax.types import Array


def wide(dtype: DTypeLike) -> jnp.dtype:
  """float32 for float32 and narrower; float64 stays, so that an identity can be tested without rounding."""
  return jnp.promote_types(dtype, jnp.float32)


def widen(x: Array) -> Array:
  """`x` in its wide dtype."""
  return x.astype(wide(x.dtype))
