"""A batch some rows at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagrl_jax.rl import gradients


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
