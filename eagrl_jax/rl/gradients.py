"""Gradient, or any function, of a batch, some rows at a time; a step that a non-finite gradient cannot spoil.

Of reinforcement learning and of supervised training alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from eagrl_jax.types import Array, Params


@struct.dataclass
class Stats:
  """What a loss reports: `sums` add up over micro-batches, of `peaks` (never negative) the largest counts."""

  sums: dict[str, Array]
  peaks: dict[str, Array]


def accumulate(
    loss_fn: Callable[[Params, Any], tuple[Array, Stats]], params: Params, batch: Any, micro: int
) -> tuple[Params, Stats]:
  """Gradient and statistics of `batch`, `micro` leading rows at a time under `lax.scan`.

  `loss_fn` returns a sum over rows.

  Raises:
    ValueError: `micro` does not divide the number of rows; of a config `stages.checks` refuses that.
  """
  rows = jax.tree.leaves(batch)[0].shape[0]
  if rows % micro:
    raise ValueError(f'accumulate: {micro} rows at a time do not divide a batch of {rows}')
  grad_fn = jax.grad(loss_fn, has_aux=True)
  if rows == micro:
    return grad_fn(params, batch)
  parts = split(batch, rows // micro)

  def step(carry, part):
    grads, stats = carry
    g, s = grad_fn(params, part)
    grads = jax.tree.map(lambda a, b: a + b.astype(a.dtype), grads, g)
    merged = Stats(jax.tree.map(jnp.add, stats.sums, s.sums), jax.tree.map(jnp.maximum, stats.peaks, s.peaks))
    return (grads, merged), None

  first = jax.tree.map(lambda x: x[0], parts)
  stats = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(loss_fn, params, first)[1])
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
  (grads, stats), _ = jax.lax.scan(step, (zeros, stats), parts)
  return jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params), stats


def map_rows(function: Callable[[Any], Any], batch: Any, micro: int) -> Any:
  """`function(batch)`, a tree of `[R, ...]`, of `micro` of the R rows at a time: it needs no more memory than they do.

  Raises:
    ValueError: as `accumulate`.
  """
  rows = jax.tree.leaves(batch)[0].shape[0]
  if rows % micro:
    raise ValueError(f'map_rows: {micro} rows at a time do not divide a batch of {rows}')
  if rows == micro:
    return function(batch)
  parts = jax.lax.map(function, split(batch, rows // micro))
  return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(rows, *x.shape[2:]), parts)


def guarded_step(
    state: Any, grads: Params, loss: Array, optimizer: optax.GradientTransformation, counts: Array | bool = True
) -> tuple[Any, dict[str, Array]]:
  """Optimiser step; a non-finite loss or gradient changes nothing but `state.step`, and `finite` says so.

  Args:
    counts: False of a batch of which nothing counts: its gradient is 0, but momentum and weight decay would move the
      weights on. It changes nothing but `state.step` either.
  """
  norm = optax.tree.norm(grads)
  finite = jnp.isfinite(norm) & jnp.isfinite(loss)

  def apply(params, opt_state):
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  # A branch writes over the donated state; a choice of new or old by element would hold both.
  params, opt_state = jax.lax.cond(finite & counts, apply, lambda *same: same, state.params, state.opt_state)
  state = state.replace(params=params, opt_state=opt_state, step=state.step + 1)
  return state, {'grad_norm': norm, 'finite': finite.astype(jnp.float32)}


def split(batch: Any, n: int) -> Any:
  """n shares of the rows, `[R, ...] -> [n, R / n, ...]`; the i-th takes every n-th row from the i-th on.

  So an axis that is sharded over devices stays spread over all of them.
  """
  return jax.tree.map(lambda x: jnp.swapaxes(jnp.reshape(x, (-1, n, *x.shape[1:])), 0, 1), batch)
