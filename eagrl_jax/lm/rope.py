"""Rotary position embedding in the half-split layout of Hugging Face checkpoints."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.precision import widen
from eagrl_jax.types import Array


def frequencies(cfg: LMConfig) -> np.ndarray:
  """Angular frequency of each rotary pair, radians a position, `[H/2]`.

  With `rope_scaling` the Llama-3.1 rule applies: long wavelengths are stretched by `factor`,
  short ones kept, those between interpolated (Llama 3 report, arXiv 2407.21783).
  """
  freq = cfg.rope_theta ** (-np.arange(0, cfg.head_dim, 2, dtype=np.float64) / cfg.head_dim)
  s = cfg.rope_scaling
  if s is not None:
    turns = s.original_max_position * freq / (2 * math.pi)
    keep = np.clip((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0, 1)
    freq = keep * freq + (1 - keep) * freq / s.factor
  return freq.astype(np.float32)


def angles(cfg: LMConfig, positions: Array) -> tuple[Array, Array]:
  """Cosine and sine at integer `positions [...]`, float32 `[..., 1, H/2]`; the 1 is the head axis."""
  freq = jnp.asarray(frequencies(cfg)).reshape((1,) * (positions.ndim + 1) + (-1,))
  theta = positions[..., None, None].astype(jnp.float32) * freq
  return jnp.cos(theta), jnp.sin(theta)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
  """Rotates the pairs `(x[i], x[i + H/2])`. `x [..., N, H]`, the result keeps its dtype."""
  a, b = jnp.split(widen(x), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
