"""Top-k sets by hand and against a sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagrl_jax import masked
from eagrl_jax.types import EagrlError

X = np.array([[0.1, 0.4, 0.1, 0.4], [0.2, 0.5, 0.2, 0.1], [0, 0, 1, 0], [0, 0, 0, 0]], np.float32)


@pytest.mark.parametrize('run', [masked.top_k, lambda x, k: jax.jit(masked.top_k, static_argnums=1)(jnp.asarray(x), k)])
def test_top_k_takes_positive_entries_and_breaks_ties_by_index(run):
  np.testing.assert_array_equal(run(X, 2), [[0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
  np.testing.assert_array_equal(run(X, 3), [[1, 1, 0, 1], [1, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
  np.testing.assert_array_equal(run(X, 9), X > 0)
  np.testing.assert_array_equal(run(X[0], 1), [0, 1, 0, 0])
  many = np.random.default_rng(0).integers(0, 6, (3, 50, 12)).astype(np.float32)
  ranked = [sorted(range(12), key=lambda f: (-row[f], f))[:4] for row in many.reshape(-1, 12)]
  want = [[f in best and row[f] > 0 for f in range(12)] for best, row in zip(ranked, many.reshape(-1, 12))]
  np.testing.assert_array_equal(run(many, 4), np.reshape(want, many.shape))


def test_top_k_keeps_numpys_precision():
  near = np.array([1.0, 1.0 + 1e-12])
  assert isinstance(masked.top_k(near, 1), np.ndarray) and masked.top_k(near, 1).tolist() == [False, True]


def test_top_k_of_nothing_is_refused():
  with pytest.raises(EagrlError, match='top_k'):
    masked.top_k(X, 0)
