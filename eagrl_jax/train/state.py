"""What training carries from step to step, created where it will live."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from eagrl_jax.lm import lora, model
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.types import Array, Params


@struct.dataclass
class TrainState:
  """Weights, optimiser state, and the number of updates tried."""

  params: Params  # those that are trained (`lm.lora.split`)
  opt_state: optax.OptState
  step: Array  # [] int32


def _fresh(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
  # A weakly typed leaf (`jnp.full(shape, 1.0)`) comes out of the first step strongly typed: a second compile.
  params = jax.tree.map(lambda x: x.astype(x.dtype), params)
  return TrainState(params=params, opt_state=optimizer.init(params), step=jnp.zeros((), jnp.int32))


def state_shardings(lm_cfg: LMConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
  """A `NamedSharding` for every leaf: an optimiser moment lies where its weight does, the rest is replicated."""
  params, _ = lora.split(model.param_shardings(lm_cfg, mesh), lm_cfg)
  everywhere: Any = NamedSharding(mesh, PartitionSpec())
  shapes = jax.eval_shape(lambda p: _fresh(p, optimizer), lora.split(model.abstract(lm_cfg), lm_cfg)[0])
  opt_state = optax.tree_map_params(
      optimizer, lambda _, where: where, shapes.opt_state, params, transform_non_params=lambda _: everywhere
  )
  return TrainState(params=params, opt_state=opt_state, step=everywhere)


def create(lm_cfg: LMConfig, optimizer: optax.GradientTransformation, key: Array, mesh: Mesh) -> TrainState:
  """A new policy, initialised in one jit directly into its shards."""
  where = state_shardings(lm_cfg, optimizer, mesh)
  init = lambda k: _fresh(lora.split(model.init(lm_cfg, k), lm_cfg)[0], optimizer)
  return jax.jit(init, out_shardings=where)(key)


def from_params(
    params: Params, lm_cfg: LMConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
  """Training state around loaded weights, at step 0; of a policy with adapters around those alone.

  The caller's arrays are copied, never aliased: an update donates its state.
  """
  where = state_shardings(lm_cfg, optimizer, mesh)
  placed = jax.device_put(lora.split(params, lm_cfg)[0], where.params)
  return jax.jit(lambda p: _fresh(jax.tree.map(jnp.copy, p), optimizer), out_shardings=where)(placed)


def abstract(lm_cfg: LMConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
  """Shapes, types and shardings of the state, as a checkpoint is restored into."""
  shapes = jax.eval_shape(lambda p: _fresh(p, optimizer), lora.split(model.abstract(lm_cfg), lm_cfg)[0])
  where = state_shardings(lm_cfg, optimizer, mesh)
  place: Any = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  return jax.tree.map(place, shapes, where)
