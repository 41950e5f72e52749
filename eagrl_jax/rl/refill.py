"""DAPO's dynamic sampling (arXiv 2503.14476, section 3.2): groups that count take the places of those that do not."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from eagrl_jax.rl.update import RLBatch


@jax.jit
def refill(batch: RLBatch, more: RLBatch) -> RLBatch:
  """As many groups as `batch` has: those of both that count, its own first, then those that do not."""
  both = jax.tree.map(lambda *x: jnp.concatenate(x), batch, more)
  first = jnp.argsort(jnp.asarray(both.weight) <= 0, stable=True)[:len(batch.weight)]
  return jax.tree.map(lambda x: x[first], both)
