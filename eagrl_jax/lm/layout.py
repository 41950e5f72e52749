"""One table of checkpoint keys for reading and writing, and the streamed way from named tensors to the params tree."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from eagrl_jax.lm import model
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.types import Array, EagrlError, Params

TOP = {'embed': 'model.embed_tokens.weight', 'final_norm': 'model.norm.weight', 'lm_head': 'lm_head.weight'}
LAYER = {
    'attn_norm': 'input_layernorm.weight',
    'wq': 'self_attn.q_proj.weight',
    'wk': 'self_attn.k_proj.weight',
    'wv': 'self_attn.v_proj.weight',
    'wo': 'self_attn.o_proj.weight',
    'bq': 'self_attn.q_proj.bias',
    'bk': 'self_attn.k_proj.bias',
    'bv': 'self_attn.v_proj.bias',
    'q_norm': 'self_attn.q_norm.weight',
    'k_norm': 'self_attn.k_norm.weight',
    'mlp_norm': 'post_attention_layernorm.weight',
    'w_gate': 'mlp.gate_proj.weight',
    'w_up': 'mlp.up_proj.weight',
    'w_down': 'mlp.down_proj.weight',
}
Dtype = np.dtype | type | str
Read = Callable[[str, int | None], np.ndarray]


def leaves(cfg: LMConfig) -> list[tuple[str, int | None]]:
  """Every weight of a checkpoint as (our name, layer), layer None outside the layers."""
  spec = model.declare(cfg)
  top: list[tuple[str, int | None]] = [(name, None) for name in spec if name != 'layers']
  return top + [(name, i) for name in spec['layers'] for i in range(cfg.n_layers)]


def hf_key(name: str, index: int | None) -> str:
  """The checkpoint's key of one weight."""
  return TOP[name] if index is None else f'model.layers.{index}.{LAYER[name]}'


def to_hf(name: str, value: np.ndarray) -> np.ndarray:
  """One weight as a checkpoint has it: matrices `[out, in]`."""
  if name == 'wo':
    return value.reshape(-1, value.shape[-1]).T
  if _is_linear(name):
    return value.reshape(value.shape[0], -1).T
  return value.reshape(-1) if name[0] == 'b' else value


def hf_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Shape of one weight in a checkpoint, of ours: matrices `[out, in]`."""
  if name == 'wo':
    return shape[-1], math.prod(shape[:-1])
  if _is_linear(name):
    return math.prod(shape[1:]), shape[0]
  return (math.prod(shape),) if name[0] == 'b' else shape


def assemble(cfg: LMConfig, read: Read, dtype: Dtype = np.float32, mesh: Mesh | None = None) -> Params:
  """Builds the params from `read(name, layer)`, which gives matrices as `[out, in]`.

  Args:
    mesh: where the weights go, each as soon as it is read: the host never holds more than one of them. None keeps them
      on the host.

  Returns:
    The tree of numpy arrays, or of arrays sharded by `model.param_shardings`.

  Raises:
    EagrlError: a tensor of another size than the config says.
  """
  spec = model.declare(cfg)

  def one(name, index, shape):
    raw = read(name, index)
    if raw.shape != hf_shape(name, shape):  # one of the same size would load, its numbers in the wrong places
      raise EagrlError(f'{hf_key(name, index)} has shape {raw.shape}, which is not {hf_shape(name, shape)}; the weights'
                       ' do not match the config')
    return (raw.T if _is_linear(name) else raw).reshape(shape)

  where = None if mesh is None else model.param_shardings(cfg, mesh)
  params: Params = {'layers': {}}
  for name, s in spec.items():
    if name != 'layers':
      # Copied: a memory-mapped file may change under a running model. Not named: that would keep it for the next one.
      params[name] = (np.array(one(name, None, s.shape), dtype) if where is None else
                      _place(one(name, None, s.shape), dtype, where[name]))
  for name, s in spec['layers'].items():
    read_one = functools.partial(one, name, shape=s.shape[1:])
    if where is None:
      params['layers'][name] = np.empty(s.shape, dtype)
      for i in range(cfg.n_layers):
        params['layers'][name][i] = read_one(i)
    else:
      params['layers'][name] = _stack(read_one, s.shape, dtype, where['layers'][name])
  return params


def _stack(read: Callable[[int], np.ndarray], shape: tuple[int, ...], dtype: Dtype, where: NamedSharding) -> Array:
  """A weight of all layers, filled in place on its devices."""
  one = NamedSharding(where.mesh, PartitionSpec(*where.spec[1:]))
  out = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=where)()
  put = jax.jit(lambda all_, x, i: jax.lax.dynamic_update_index_in_dim(all_, x, i, 0), donate_argnums=0,
                out_shardings=where)
  for i in range(shape[0]):
    out = put(out, _place(read(i), dtype, one), i)
  return out


def _place(x: np.ndarray, dtype: Dtype, where: NamedSharding) -> Array:
  # Each process hands over its own part; a plain device_put would compare the array across processes first.
  placed = jax.make_array_from_callback(x.shape, where, lambda index: np.array(x[index], dtype, order='C'))
  return jax.block_until_ready(placed)  # before the host's copy is let go


def _is_linear(name: str) -> bool:
  return name[0] == 'w' or name == 'lm_head'
