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

from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.precision import widen
from eagrl_jax.types import Array, Params

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
  if cfg.lora is None or name not in cfg.lora.names:
    return None
  a, b = (layer[name + s].astype(x.dtype) for s in SUFFIXES)
  low = x @ a.reshape(-1, cfg.lora.rank)
  return (low @ b.reshape(cfg.lora.rank, -1)) * jnp.asarray(cfg.lora.scale, x.dtype)


def merge(params: Params, cfg: LMConfig) -> tuple[Params, LMConfig]:
  """Plain weights `W + alpha / rank A B`, float32 at least where there was an adapter, and their config."""
  if cfg.lora is None:
    return params, cfg
  layers = {k: v for k, v in params['layers'].items() if not is_adapter(k)}
  for name in cfg.lora.names:
    a, b = (params['layers'][name + s] for s in SUFFIXES)
    low = jnp.einsum('LIR,LRO->LIO', a.reshape(a.shape[0], -1, cfg.lora.rank), b.reshape(*b.shape[:2], -1),
                     precision='highest')
    layers[name] = widen(jnp.asarray(layers[name])) + cfg.lora.scale * low.reshape(layers[name].shape)
  return {**params, 'layers': layers}, dataclasses.replace(cfg, lora=None)
