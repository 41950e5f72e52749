"""Low-rank adapters (LoRA, arXiv 2106.09685): the weights that a run trains, and those that it leaves frozen.

Adapters lie beside their weight in the one params tree, `wq` with `wq_a [L, ..., R]` and `wq_b [L, R, ...]`, so that
sampler, trainer, search and checkpoints need not know of them. Without adapters every weight is trained: the same
path, with nothing frozen.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from eagrl_jax.lm.config import LMConfig, LoraConfig
from eagrl_jax.lm.precision import wide, widen
from eagrl_jax.types import Array, ArrayLike, Params

SUFFIXES = ('_a', '_b')
NOTHING: Params = {'layers': {}}  # what is frozen without adapters


def declare(layers: dict[str, Any], cfg: LMConfig) -> dict[str, Any]:
  """Specs of the adapters of `cfg.lora`, from those of the layer weights (`model.ParamSpec`)."""
  assert cfg.lora is not None
  out = {}
  for name in cfg.lora.names:
    spec, n = layers[name], inputs(name)
    fan_in = math.prod(spec.shape[1:1 + n])
    out[name + '_a'] = dataclasses.replace(
        spec, shape=(*spec.shape[:1 + n], cfg.lora.rank), axes=(*spec.axes[:1 + n], None),
        init_scale=(3 * fan_in) ** -0.5)  # the spread of PEFT's uniform start
    out[name + '_b'] = dataclasses.replace(
        spec, shape=(spec.shape[0], cfg.lora.rank, *spec.shape[1 + n:]), axes=('layers', None, *spec.axes[1 + n:]),
        init_scale=0.0)
  return out


def inputs(name: str) -> int:
  """How many axes of a layer weight are summed over: `wo [L, N, H, D]` has two."""
  return 2 if name == 'wo' else 1


def is_adapter(name: str) -> bool:
  return name[0] == 'w' and name.endswith(SUFFIXES)


def split(params: Params, cfg: LMConfig) -> tuple[Params, Params]:
  """(trained, frozen): two trees of the layout of `params`, each with its own leaves only. `join` inverts it."""
  if cfg.lora is None:
    return params, NOTHING
  layers = params['layers']
  adapters = {'layers': {k: v for k, v in layers.items() if is_adapter(k)}}
  rest = {k: v for k, v in layers.items() if not is_adapter(k)}
  return adapters, {**params, 'layers': rest}


def join(trained: Params, frozen: Params) -> Params:
  """The params tree again."""
  return {**frozen, **trained, 'layers': {**frozen['layers'], **trained['layers']}}


def apply(layer: Params, cfg: LMConfig, name: str, x: Array) -> Array | None:
  """What the adapter of `name` adds to its output, flat `[..., IN] -> [..., OUT]`; None without one."""
  if (adapter := _adapter(cfg, name)) is None:
    return None
  a, b = (layer[name + s].astype(x.dtype) for s in SUFFIXES)
  low = x @ a.reshape(-1, adapter.rank)
  return (low @ b.reshape(adapter.rank, -1)) * jnp.asarray(adapter.scale, x.dtype)


def merged(params: Params, cfg: LMConfig, name: str, index: int | None) -> ArrayLike:
  """One weight of the plain model, layer `index` of those of layers: `W + alpha / rank A B` where there is an adapter.

  The sum is float32 at least. One weight at a time, since all of them together may not fit beside the policy.
  """
  if index is None:
    return params[name]
  weight = params['layers'][name][index]
  if (adapter := _adapter(cfg, name)) is None:
    return weight
  a, b = (params['layers'][name + s][index] for s in SUFFIXES)
  low = jnp.einsum('IR,RO->IO', a.reshape(-1, adapter.rank), b.reshape(adapter.rank, -1), precision='highest')
  return widen(jnp.asarray(weight)) + adapter.scale * low.reshape(weight.shape)


def merged_dtype(params: Params, cfg: LMConfig, name: str) -> np.dtype:
  """Of what `merged` gives."""
  dtype = (params if name in params else params['layers'])[name].dtype
  return np.dtype(wide(dtype) if _adapter(cfg, name) else dtype)


def _adapter(cfg: LMConfig, name: str) -> LoraConfig | None:
  return cfg.lora if cfg.lora is not None and name in cfg.lora.names else None
