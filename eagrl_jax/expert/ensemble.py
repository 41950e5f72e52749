"""Running a stacked ensemble: E sets of parameters on one leading axis, patients in fixed-size chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eagrl_jax.expert.concare import ConCare, ConCareConfig, init
from eagrl_jax.types import Array, ExpertBatch, Params


def expert(cfg: ConCareConfig, batch: ExpertBatch) -> ConCare:
  """The module for batches of this width."""
  return ConCare(cfg, batch.values.shape[-1], batch.static.shape[-1])


def apply(model: ConCare, params: Params, *args: Any, **options: Any) -> Any:
  """`model.apply` of one member; flax types its result as if state could come back beside it."""
  return model.apply({'params': params}, *args, **options)


def init_members(keys: Array, cfg: ConCareConfig, batch: ExpertBatch) -> Params:
  """Stacked parameters `[E, …]`, one member for each of the typed keys `[E]`."""
  return jax.vmap(lambda key: init(key, cfg, batch.values.shape[-1], batch.static.shape[-1]))(keys)


def member_logits(params: Params, cfg: ConCareConfig, batch: ExpertBatch) -> tuple[Array, Array]:
  """One member without dropout: logit [B] and attention [B, F+1]."""
  logit, attention, _ = apply(expert(cfg, batch), params, batch)
  return logit, attention


def pad_rows(batch: ExpertBatch, rows: int) -> ExpertBatch:
  """Appends empty patients (no valid visit) up to `rows`."""
  xp = np if isinstance(batch.values, np.ndarray) else jnp
  pad = lambda x: xp.pad(x, [(0, rows - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
  return jax.tree.map(pad, batch)


def map_chunks(fn: Callable[[ExpertBatch], Array], batch: ExpertBatch, chunk: int) -> np.ndarray:
  """`fn` over chunks of exactly `chunk` patients, concatenated on the host.

  Args:
    fn: jitted, maps a chunk to [E, chunk, …]; it compiles once because every chunk has one shape.
    batch: numpy arrays of N patients.
  Returns:
    [E, N, …].
  """
  n = batch.values.shape[0]
  parts = [fn(pad_rows(jax.tree.map(lambda x: x[i:i + chunk], batch), chunk)) for i in range(0, n, chunk)]
  return np.concatenate([np.asarray(p) for p in parts], 1)[:, :n]
