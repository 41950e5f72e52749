"""The joint reward against the golden values of the method and a set-based oracle."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagrl_jax.rl import rewards
from eagrl_jax.rl.rewards import RewardConfig, joint_reward
from eagrl_jax.types import EagrlError

GOLDEN = [(1, 0.9, 0.094639), (1, 0.6, -0.460826), (1, 0.5, -0.693147), (0, 0.1, 0.094639), (0, 0.8, -1.609438)]


@pytest.mark.parametrize('label, prob, expected', GOLDEN)
def test_classification_golden(label, prob, expected):
  got = rewards.classification_score(jnp.array(prob), jnp.array(label), RewardConfig())
  np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize('kind', rewards.KINDS)
def test_a_soft_label_gives_the_expected_score(kind):
  prob, goal, cfg = np.linspace(0.05, 0.95, 19, dtype=np.float32), 0.3, RewardConfig(kind=kind)
  score = lambda label: np.asarray(rewards.classification_score(jnp.array(prob), jnp.full(19, label), cfg))
  np.testing.assert_allclose(score(goal), goal * score(1.0) + (1 - goal) * score(0.0), atol=1e-6)
  if kind in ('log', 'brier'):  # proper: best where it says the goal
    assert prob[score(goal).argmax()] == pytest.approx(goal, abs=0.026)


def test_total_golden():
  # One shared feature of a union of four: Jaccard .25.
  expert = jnp.zeros(8, bool).at[jnp.array([0, 1, 2])].set(True)
  parts = joint_reward(jnp.array(0.9), jnp.array(True), jnp.array(1), jnp.array([2, 5, -1]), expert, RewardConfig())
  np.testing.assert_allclose([parts.jaccard, parts.total], [0.25, 0.156784], atol=1e-6)


def oracle_jaccard(named, expert, k):
  distinct = list(dict.fromkeys(i for i in named if i >= 0))[:k]
  ours, theirs = set(distinct), set(np.flatnonzero(expert))
  return len(ours & theirs) / len(ours | theirs) if ours | theirs else 0.0


@pytest.mark.parametrize('k', [1, 3, 20])
def test_jaccard_against_sets(k):
  rng = np.random.default_rng(k)
  named = rng.integers(-1, 9, (4, 5, 12))
  expert = rng.random((4, 5, 9)) < 0.3
  expert[0] = False
  named[0, 0] = -1
  got = jax.jit(rewards.jaccard, static_argnums=2)(named, expert, k)
  want = [[oracle_jaccard(named[i, j], expert[i, j], k) for j in range(5)] for i in range(4)]
  np.testing.assert_allclose(got, want, atol=1e-7)
  assert got[0, 0] == 0


def test_an_unknown_id_counts_as_a_miss():
  np.testing.assert_allclose(rewards.jaccard(jnp.array([2, 7]), jnp.array([False, False, True]), 5), 0.5)


def test_listing_every_feature_does_not_pay():
  expert = jnp.arange(30) < 5
  honest = rewards.jaccard(jnp.array([0, 1, 2, 3, 4] + [-1] * 25), expert, 5)
  greedy = rewards.jaccard(jnp.arange(29, -1, -1), expert, 5)
  assert honest == 1 and greedy == 0


def test_unparsed_answers():
  expert = jnp.ones((2, 2), bool)
  args = (jnp.array([jnp.nan, 0.9]), jnp.array([False, True]), jnp.array([1, 1]), jnp.array([[0, 1]] * 2), expert)
  parts = joint_reward(*args, RewardConfig())
  np.testing.assert_allclose(parts.total, [0.6 * math.log(0.01), 0.6 * 0.0946395 + 0.4], rtol=1e-5)
  np.testing.assert_allclose(parts.agreement, [0, 1])
  np.testing.assert_allclose(parts.jaccard, [1, 1])
  brier = joint_reward(*args, RewardConfig(kind='brier'))
  np.testing.assert_allclose(brier.classification, [-0.9801, -0.01], rtol=1e-5)
  np.testing.assert_allclose(joint_reward(*args, RewardConfig(unparsed=-2.0)).classification[0], -2)


@pytest.mark.parametrize(('kind', 'undecided'), [
    ('eag', -0.693), ('log', -0.693), ('brier', -0.25), ('authors', -0.693)])
def test_no_answer_may_earn_more_than_an_undecided_one(kind, undecided):
  assert RewardConfig(kind=kind, unparsed=undecided - 0.01).unparsed_score == undecided - 0.01
  with pytest.raises(EagrlError, match='reward.unparsed'):
    RewardConfig(kind=kind, unparsed=undecided + 0.01)


def test_other_kinds_by_hand():
  args = (jnp.array(0.8), jnp.array(True), jnp.array(1), jnp.array([0]), jnp.array([True, True]))
  total = lambda kind: float(joint_reward(*args, RewardConfig(kind=kind)).total)
  np.testing.assert_allclose(total('authors'), math.log(0.8) + 0.5 * 0.3 + 0.1 * 0.5, atol=1e-6)
  np.testing.assert_allclose(total('log'), 0.6 * math.log(0.8) + 0.4 * 0.5, rtol=1e-6)
  np.testing.assert_allclose(total('brier'), -0.6 * 0.04 + 0.4 * 0.5, rtol=1e-5)


@pytest.mark.parametrize('kind, best', [('eag', 0.149), ('log', 0.2), ('brier', 0.2)])
def test_maximiser_at_true_risk_of_a_fifth(kind, best):
  prob = jnp.linspace(0.011, 0.989, 979)
  score = lambda y: rewards.classification_score(prob, jnp.full(prob.shape, y), RewardConfig(kind=kind))
  np.testing.assert_allclose(prob[jnp.argmax(0.2 * score(1) + 0.8 * score(0))], best, atol=1.1e-3)


@pytest.mark.parametrize('bad', [{'kind': 'x'}, {'lam': 1.5}, {'clip_low': 0.0}, {'top_k': 0}])
def test_bad_config(bad):
  with pytest.raises(EagrlError, match=next(iter(bad))):
    RewardConfig(**bad)
