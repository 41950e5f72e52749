"""Entropy-aware upper clip: an answer whose key clinical tokens were uncertain may move further.

    eps(tau) = eps_min + (eps_max - eps_min) (H(tau) - H_min) / (H_max - H_min)

H(tau) is the mean entropy of the sampling policy over the tokens inside <Important Features>. Equal bounds give
a constant: .28 is DAPO's clip, .2 GRPO's. Source: arXiv 2508.13579.
"""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp

from eagrl_jax import masked
from eagrl_jax.types import Array, ArrayLike, EagrlError

SCOPES = ('group', 'batch')
FLAT = 1e-6  # nats; entropies closer than this are equal


@dataclasses.dataclass(frozen=True)
class ClipConfig:
  """Bounds of the upper clip, and whose entropies they are stretched over: one group's or the batch's."""

  high_min: float = 0.2
  high_max: float = 0.4
  scope: str = 'group'

  def __post_init__(self):
    if self.scope not in SCOPES:
      raise EagrlError(f'rl.clip_over={self.scope!r} is unknown; choose one of {", ".join(SCOPES)}')
    if not 0 < self.high_min <= self.high_max:
      raise EagrlError(f'rl.clip_min={self.high_min} must be positive and at most rl.clip_max={self.high_max}')


def key_entropy(entropy: ArrayLike, valid: ArrayLike, key_mask: Array) -> Array:
  """Mean entropy over the key tokens, over the whole answer where it has none. `[..., T] -> [...]`."""
  chex.assert_equal_shape([entropy, valid, key_mask])
  key = key_mask & valid
  entropy = jnp.where(valid, entropy, 0)
  return jnp.where(key.any(-1), masked.mean(entropy, key, -1), masked.mean(entropy, valid, -1))


def adaptive_upper_clip(mean_entropy: Array, cfg: ClipConfig) -> Array:
  """Upper clip of every answer; no gradient passes. `[B, G] -> [B, G]`, between `high_min` and `high_max`."""
  chex.assert_rank(mean_entropy, 2)
  axis = -1 if cfg.scope == 'group' else (0, 1)
  low = jnp.min(mean_entropy, axis, keepdims=True)
  span = jnp.max(mean_entropy, axis, keepdims=True) - low
  share = jnp.where(span > FLAT, (mean_entropy - low) / jnp.maximum(span, FLAT), 0)
  return jax.lax.stop_gradient(cfg.high_min + (cfg.high_max - cfg.high_min) * share)
