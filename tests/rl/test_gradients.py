"""A batch some rows at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

from eagrl_jax.rl import gradients


@struct.dataclass
class State:
  params: dict
  opt_state: tuple
  step: jax.Array


@pytest.mark.parametrize('micro', [1, 2, 3, 6])
def test_rows_come_back_in_their_order(micro):
  batch = {'x': jnp.arange(12.0).reshape(6, 2), 'y': jnp.arange(6)}
  function = lambda part: (part['x'] * 2 + part['y'][:, None], part['y'] ** 2)
  found = jax.jit(lambda b: gradients.map_rows(function, b, micro))(batch)
  for got, want in zip(found, function(batch)):
    np.testing.assert_array_equal(got, want)


def test_rows_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match='4 rows at a time do not divide a batch of 6'):
    gradients.map_rows(lambda x: x, jnp.zeros((6, 1)), 4)


def test_a_step_holds_no_second_copy_of_weights_and_moments():
  params = {name: jnp.ones((64, 256)) for name in 'abcd'}
  size = sum(x.nbytes for x in params.values())
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
  state = State(params, optimizer.init(params), jnp.int32(0))
  step = jax.jit(lambda state, grads: gradients.guarded_step(state, grads, jnp.float32(1), optimizer), donate_argnums=0)
  plan = step.lower(state, params).compile().memory_analysis()
  # Clipped gradients alone. Weights and two moments chosen by element, new or old, took two thirds of a copy more.
  assert plan.temp_size_in_bytes < 1.1 * size, plan.temp_size_in_bytes / size
