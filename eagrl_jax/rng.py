"""Everything random is a function of (seed, stage, step, example); no generator state is kept."""

from __future__ import annotations

import zlib

import jax
import numpy as np

from eagrl_jax.types import Array, ArrayLike


def stage_key(seed: int, stage: str) -> Array:
  """Typed key of a stage; the stage's name is hashed, so adding a stage moves no other."""
  return jax.random.fold_in(jax.random.key(seed), zlib.crc32(stage.encode()))


def example_keys(key: Array, example: ArrayLike) -> Array:
  """One key per example id, independent of batch size and order. `[B] -> key[B]`."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(example)


def host(seed: int, purpose: str, *example: int) -> np.random.Generator:
  """Random numbers of the host, of one purpose and of one step or patient where it is given."""
  return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *example])
