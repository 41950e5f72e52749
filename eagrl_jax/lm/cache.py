"""Key-value segments: a prompt or path shared by siblings, and the block that each sibling owns."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from eagrl_jax.lm import model
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


SHALLOW = 8  # layers
FEW = 2 << 30  # bytes of a deeper decoder's layers that a CPU may hold twice


def unrolled(cfg: LMConfig, backend: str | None = None) -> bool:
  """Whether decoding goes layer by layer, the weights and keys of each an array of their own, instead of by a scan.

  A scan over layers copies each layer's weights and own keys out of the stack at every token, half of a small
  decoder's time; of SmolLM2's on a CPU a third with 8 rows, a tenth with 64. Without it the layers' weights are held
  twice, and compilation takes up to three times as long. In bfloat16 a CPU gains nothing: it multiplies so few rows in
  float32.

  Args:
    backend: for which this is asked; None stands for the one at hand.
  """
  if cfg.n_layers <= SHALLOW:
    return True
  if (backend or jax.default_backend()) != 'cpu' or cfg.compute_dtype != 'float32':
    return False
  return 4 * sum(math.prod(spec.shape) for spec in jax.tree.leaves(model.declare(cfg)['layers'])) <= FEW


def by_layer(tree: Any, cfg: LMConfig) -> Any:
  """Weights or keys layer by layer where decoding is `unrolled`: a tuple of trees without the leading axis L."""
  if not unrolled(cfg):
    return tree
  return tuple(jax.tree.map(lambda x: x[i], tree) for i in range(cfg.n_layers))


def stacked(tree: Any) -> Any:
  """The inverse of `by_layer`."""
  return jax.tree.map(lambda *x: jnp.stack(x), *tree) if isinstance(tree, tuple) else tree
