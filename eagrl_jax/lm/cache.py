"""Key-value segments: a prompt or path shared by siblings, and the block that each sibling owns."""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct

from eagrl_jax.lm.config import LMConfig
from eagrl_jax.types import Array


@struct.dataclass
class KV:
  """Rotated keys and values of all layers; the head axis holds key-value heads only."""

  k: Array  # [L, B, S, K, H] shared by siblings, or [L, B, G, S, K, H] own
  v: Array


def empty(cfg: LMConfig, batch: int, group: int, slots: int) -> KV:
  """Own block of `slots` free slots for each of `batch x group` sequences: `[L, B, G, S, K, H]`."""
  shape = (cfg.n_layers, batch, group, slots, cfg.n_kv_heads, cfg.head_dim)
  return KV(jnp.zeros(shape, cfg.compute_dtype), jnp.zeros(shape, cfg.compute_dtype))
