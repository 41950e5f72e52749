"""The clipped objective by hand, value and gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagrl_jax.rl import losses
from eagrl_jax.types import EagrlError

# ratio, advantage, eps_high -> objective, its derivative by log ratio
CASES = [
    (1.0, 2.0, 0.2, 2.0, 2.0),  # on-policy
    (1.1, 1.0, 0.2, 1.1, 1.1),
    (1.5, 1.0, 0.2, 1.2, 0.0),  # upper clip acts
    (1.3, 1.0, 0.4, 1.3, 1.3),  # an uncertain answer may move further
    (0.5, 1.0, 0.2, 0.5, 0.5),  # a fallen ratio of a good token is never held
    (0.5, -1.0, 0.2, -0.8, 0.0),  # lower clip acts
    (1.5, -1.0, 0.2, -1.5, -1.5),
]


@pytest.mark.parametrize('ratio, advantage, eps_high, value, slope', CASES)
def test_surrogate_by_hand(ratio, advantage, eps_high, value, slope):
  f = lambda x: losses.clipped_surrogate(x, jnp.array(advantage), 0.2, jnp.array(eps_high))
  got = jax.value_and_grad(f)(jnp.log(jnp.array(ratio)))
  np.testing.assert_allclose(got, (value, slope), rtol=1e-6, atol=1e-7)


def test_dual_clip_bounds_bad_tokens_only():
  ratio, advantage = jnp.array([5.0, 5.0, 1.5]), jnp.array([-1.0, 1.0, -1.0])
  got = losses.clipped_surrogate(jnp.log(ratio), advantage, 0.2, jnp.full(3, 0.2), dual_clip=3.0)
  np.testing.assert_allclose(got, [-3.0, 1.2, -1.5], rtol=1e-6)


def test_clip_active():
  ratio, advantage = jnp.array([0.7, 0.7, 1.3, 1.3, 1.3]), jnp.array([-1.0, 1.0, 1.0, -1.0, 1.0])
  low, high = losses.clip_active(jnp.log(ratio), advantage, 0.2, jnp.array([0.2, 0.2, 0.2, 0.2, 0.4]))
  np.testing.assert_array_equal(low, [True, False, False, False, False])
  np.testing.assert_array_equal(high, [False, False, True, False, False])


def test_k3_by_hand_and_unbiased():
  np.testing.assert_allclose(losses.k3(jnp.log(jnp.array([1.0, 2.0, 0.5]))), [0, 0.306853, 0.193147], atol=1e-6)
  p, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.25, 0.25])
  np.testing.assert_allclose(np.sum(p * losses.k3(jnp.log(q / p))), np.sum(p * np.log(p / q)), rtol=1e-5)


def test_token_weights_by_hand():
  valid = jnp.array([[[True, True, True, True], [True, True, False, False]], [[True, False, False, False]] * 2])
  full = losses.token_weights(valid, jnp.ones(2))
  np.testing.assert_allclose(full, np.asarray(valid) / 8, rtol=1e-6)
  dropped = losses.token_weights(valid, jnp.array([1.0, 0.0]))
  np.testing.assert_allclose(dropped, np.asarray(valid) * np.array([1, 0])[:, None, None] / 6, rtol=1e-6)
  per_answer = losses.token_weights(valid, jnp.ones(2), 'sequence_mean')
  np.testing.assert_allclose(per_answer.sum(-1), np.full((2, 2), 0.25), rtol=1e-6)
  np.testing.assert_allclose(per_answer[0, :, 0], [1 / 16, 1 / 8], rtol=1e-6)


def test_no_group_left():
  for reduction in losses.REDUCTIONS:
    assert not losses.token_weights(jnp.ones((2, 2, 3), bool), jnp.zeros(2), reduction).any()


def test_unknown_reduction():
  with pytest.raises(EagrlError, match='rl.loss'):
    losses.token_weights(jnp.ones((1, 2, 3), bool), jnp.ones(1), 'sum')
