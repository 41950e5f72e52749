"""Group advantages by hand and against numpy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from eagrl_jax.rl import advantages
from eagrl_jax.types import EagrlError

REWARDS = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)


def test_grpo_by_hand():
  np.testing.assert_allclose(advantages.group_advantages(jnp.array([1.0, 2.0, 3.0])), [-1, 0, 1], atol=2e-6)


def test_grpo_against_numpy():
  want = (REWARDS - REWARDS.mean(-1, keepdims=True)) / (REWARDS.std(-1, ddof=1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(advantages.group_advantages(jnp.array(REWARDS)), want, atol=1e-5)


def test_without_std_and_leave_one_out():
  got = advantages.group_advantages(jnp.array([1.0, 2.0, 6.0]), 'dr_grpo')
  np.testing.assert_allclose(got, [-2, -1, 3], atol=1e-6)
  want = [[row[i] - np.delete(row, i).mean() for i in range(8)] for row in REWARDS]
  got = advantages.group_advantages(jnp.array(REWARDS), 'leave_one_out')
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize('kind', advantages.KINDS)
def test_equal_rewards_have_exactly_no_advantage(kind):
  # .1 is not a binary fraction: the mean of seven of them is not .1.
  assert not advantages.group_advantages(jnp.full((2, 7), 0.1), kind).any()


def test_informative_groups():
  got = advantages.informative(jnp.array([[0.1, 0.1, 0.1], [0.1, 0.1, 0.2]]))
  np.testing.assert_array_equal(got, [False, True])


def test_overlong_penalty():
  got = advantages.overlong_penalty(jnp.array([10, 80, 85, 90, 100, 120]), limit=100, buffer=20)
  np.testing.assert_allclose(got, [0, 0, -0.25, -0.5, -1, -1])
  with pytest.raises(EagrlError, match='overlong_buffer'):
    advantages.overlong_penalty(jnp.array([1]), limit=10, buffer=11)


def test_bad_input():
  with pytest.raises(EagrlError, match='rl.group=1'):
    advantages.group_advantages(jnp.ones((4, 1)))
  with pytest.raises(EagrlError, match='rl.advantage'):
    advantages.group_advantages(jnp.ones((4, 2)), 'gae')
