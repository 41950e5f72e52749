"""DAPO's dynamic sampling (arXiv 2503.14476, section 3.2): groups that count take the places of those that do not."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from eagrl_jax.rl.update import RLBatch
from eagrl_jax.types import Array, ArrayLike, PromptBatch


@jax.jit
def refill(batch: RLBatch, more: RLBatch) -> RLBatch:
  """As many groups as `batch` has: those of both that count, its own first, then those that do not.

  Prompts of the two may be padded to different widths; they get the wider one.
  """
  width = max(b.prompt.tokens.shape[1] for b in (batch, more))
  wide = [dataclasses.replace(b, prompt=_widened(b.prompt, width)) for b in (batch, more)]
  both = jax.tree.map(lambda *x: jnp.concatenate(x), *wide)
  first = jnp.argsort(jnp.asarray(both.weight) <= 0, stable=True)[:len(batch.weight)]
  return jax.tree.map(lambda x: x[first], both)


def _widened(prompt: PromptBatch, width: int) -> PromptBatch:
  """Padded on the left to `width` tokens."""
  def pad(x: ArrayLike, fill: int) -> Array:
    return jnp.pad(jnp.asarray(x), ((0, 0), (width - x.shape[1], 0)), constant_values=fill)

  return dataclasses.replace(prompt, tokens=pad(prompt.tokens, 0), valid=pad(prompt.valid, False),
                             feature=pad(prompt.feature, -1))
