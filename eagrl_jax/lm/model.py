"""The weights of a decoder: one declaration each, giving shape, logical axes and initial scale."""

from __future__ import annotations

import dataclasses
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from eagrl_jax import mesh as mesh_lib
from eagrl_jax.lm import lora
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class ParamSpec:
  """Shape, logical axes (names of `mesh.RULES`) and standard deviation at the start."""

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  init_scale: float | None = None  # None: ones (norm gains); 0: zeros (biases)
  dtype: str = 'float32'


def declare(cfg: LMConfig) -> Params:
  """The tree of `ParamSpec`; layer weights carry a leading axis `L`."""
  n, k, h, d, f, depth = cfg.n_heads, cfg.n_kv_heads, cfg.head_dim, cfg.d_model, cfg.d_ff, cfg.n_layers
  # Residual branches start small beside the embeddings, so that every layer sees the tokens themselves from the
  # first step: looking a feature up by its name is then learned in a third of the steps.
  narrow = 0.1 / math.sqrt(2 * depth)

  def layer(shape, axes, scale=None):
    return ParamSpec((depth, *shape), ('layers', *axes), scale)

  layers = {
      'attn_norm': layer((d,), ('embed',)),
      'wq': layer((d, n, h), ('embed', 'heads', 'head_dim'), d**-0.5),
      'wk': layer((d, k, h), ('embed', 'kv_heads', 'head_dim'), d**-0.5),
      'wv': layer((d, k, h), ('embed', 'kv_heads', 'head_dim'), d**-0.5),
      'wo': layer((n, h, d), ('heads', 'head_dim', 'embed'), narrow * (n * h) ** -0.5),
      'mlp_norm': layer((d,), ('embed',)),
      'w_gate': layer((d, f), ('embed', 'mlp'), d**-0.5),
      'w_up': layer((d, f), ('embed', 'mlp'), d**-0.5),
      'w_down': layer((f, d), ('mlp', 'embed'), narrow * f**-0.5),
  }
  if cfg.qkv_bias:
    layers['bq'] = layer((n, h), ('heads', 'head_dim'), 0.0)
    layers['bk'] = layer((k, h), ('kv_heads', 'head_dim'), 0.0)
    layers['bv'] = layer((k, h), ('kv_heads', 'head_dim'), 0.0)
  if cfg.qk_norm:
    layers['q_norm'] = layer((h,), ('head_dim',))
    layers['k_norm'] = layer((h,), ('head_dim',))
  tree = {
      'embed': ParamSpec((cfg.vocab_size, d), ('vocab', 'embed'), d**-0.5),
      'layers': layers,
      'final_norm': ParamSpec((d,), ('embed',)),
  }
  if not cfg.tie_embeddings:
    tree['lm_head'] = ParamSpec((d, cfg.vocab_size), ('embed', 'vocab'), d**-0.5)
  if cfg.lora is not None:
    adapters = lora.declare(layers, cfg)
    # Never updated, so nothing is lost by keeping them as they are used.
    tree = jax.tree.map(lambda spec: dataclasses.replace(spec, dtype=cfg.compute_dtype), tree)
    tree['layers'] |= adapters
  return tree


def abstract(cfg: LMConfig, mesh: Mesh | None = None) -> Params:
  """Shapes and types of the weights; on a mesh, also where each of them lies."""
  shapes = jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.dtype(spec.dtype)), declare(cfg))
  if mesh is None:
    return shapes
  place: Any = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
  return jax.tree.map(place, shapes, param_shardings(cfg, mesh))


def init(cfg: LMConfig, key: Array) -> Params:
  """Weights of the declared types; each depends on `key` and its own name only."""

  def make(path, spec):
    if not spec.init_scale:
      return jnp.full(spec.shape, 1.0 if spec.init_scale is None else 0.0, spec.dtype)
    seed = jax.random.fold_in(key, zlib.crc32(jax.tree_util.keystr(path).encode()))
    return (spec.init_scale * jax.random.normal(seed, spec.shape)).astype(spec.dtype)

  return jax.tree_util.tree_map_with_path(make, declare(cfg))


def as_used(params: Params, cfg: LMConfig) -> Params:
  """The weights as a layer uses them, in the compute dtype; norm gains stay. For loops that read them many times.

  Each use rounds to that dtype anyway, so nothing changes but what is read from memory.
  """

  def cast(path, x):
    return x if str(path[-1].key).endswith('norm') else x.astype(cfg.compute_dtype)

  return jax.tree_util.tree_map_with_path(cast, params)


def param_shardings(cfg: LMConfig, mesh: Mesh) -> Params:
  """Tree of `NamedSharding`; an axis that the mesh does not divide (few kv heads) is replicated."""
  return jax.tree.map(lambda spec: NamedSharding(mesh, mesh_lib.fitting(mesh, spec.axes, spec.shape)), declare(cfg))
