"""Key-value segments: a prompt or path shared by siblings, and the block that each sibling owns."""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct

from eagrl_jax.lm.config import LMConfig
from eagrl_jax.types import Array


@struct.dataclass
class KV:
  """Rotated keys and values of all layers; the head axis holds key-value heads only.

  Heads come before slots: a query then meets one contiguous block, and nothing is transposed at a decode step.
  """

  k: Array  # [L, B, K, S, H] shared by siblings, or [L, B, G, K, S, H] own
  v: Array


def heads_first(x: Array) -> Array:
  """Keys or values as projected `[..., S, K, H]` -> as kept and attended `[..., K, S, H]`."""
  return jnp.swapaxes(x, -2, -3)


def empty(cfg: LMConfig, batch: int, group: int, slots: int) -> KV:
  """Own block of `slots` free slots for each of `batch x group` sequences: `[L, B, G, K, S, H]`."""
  shape = (cfg.n_layers, batch, group, cfg.n_kv_heads, slots, cfg.head_dim)
  return KV(jnp.zeros(shape, cfg.compute_dtype), jnp.zeros(shape, cfg.compute_dtype))
