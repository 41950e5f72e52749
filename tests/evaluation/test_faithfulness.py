"""Faithfulness against models whose answer is known to hang on certain features."""

import numpy as np
import pytest

from eagrl_jax.evaluation import faithfulness

N, F = 60, 12
PRESENT = np.ones((N, F), bool)
PRESENT[:, 11] = False
ROWS = np.arange(100, 100 + N)


def model(x: np.ndarray) -> np.ndarray:
  """Probability that depends on features 0 to 2 alone; an absent one counts nothing."""
  return 1 / (1 + np.exp(-np.nansum(x[:, :3], 1)))


@pytest.fixture(scope='module')
def found():
  x = np.random.default_rng(0).normal(0, 2, (N, F))
  sets = {}
  own = np.tile(np.arange(F) < 3, (N, 1))
  for name, chosen in (('own', own), ('random', faithfulness.random_sets(np.full(N, 3), PRESENT, ROWS, 0))):
    sets[name] = (chosen, model(np.where(chosen, np.nan, x)), model(np.where(chosen, x, np.nan)))
  return faithfulness.table(model(x), sets, 0.5, 200)


def test_features_that_decide_are_needed_and_enough(found):
  assert found['own']['sufficiency']['mean'] == 0  # the three alone give the same answer
  assert found['own']['comprehensiveness']['ci95'][0] > 0.2
  over = found['own']['over_random']
  assert over['comprehensiveness']['ci95'][0] > 0.1 and over['sufficiency']['ci95'][1] < -0.1
  assert 'over_random' not in found['random'] and found['own']['size']['mean'] == found['random']['size']['mean'] == 3


def test_an_answer_below_the_prior_argues_the_other_way():
  got = faithfulness.measures(np.array([0.8, 0.1]), np.array([0.5, 0.5]), np.array([0.7, 0.2]), 0.3)
  np.testing.assert_allclose(got['comprehensiveness'], [0.3, 0.4])
  np.testing.assert_allclose(got['sufficiency'], [0.1, 0.1])


def test_patients_without_a_named_feature_do_not_count():
  everything, changed = np.array([0.9, 0.9, 0.9]), np.array([0.5, 0.9, 0.9])
  chosen = np.array([[True, False], [False, False], [False, False]])
  sets = {'own': (chosen, changed, everything), 'random': (chosen, everything, everything)}
  found = faithfulness.table(everything, sets, 0.3, 50)
  assert found['own']['comprehensiveness']['n'] == 1 and found['own']['comprehensiveness']['mean'] == pytest.approx(0.4)


def test_sets_hold_only_measured_features_of_the_same_number():
  named = faithfulness.named_sets([[11, 4, 4, 2], [], [5, 6, 7, 8]], PRESENT[:3], k=3)
  assert [np.flatnonzero(row).tolist() for row in named] == [[2, 4], [], [5, 6, 7]]
  size = np.array([2, 0, 3])
  drawn = faithfulness.random_sets(size, PRESENT[:3], ROWS[:3], seed=0)
  assert (drawn.sum(1) == size).all() and not (drawn & ~PRESENT[:3]).any()
  np.testing.assert_array_equal(faithfulness.random_sets(size[::-1], PRESENT[:3], ROWS[:3][::-1], 0)[::-1], drawn)
  score = np.array([[0.1, 0.0, 0.7, 0.2]])
  assert np.flatnonzero(faithfulness.highest(score, np.array([2]))).tolist() == [2, 3]
  assert faithfulness.highest(score, np.array([4])).sum() == 3  # never one without any salience


def test_random_sets_never_hold_what_was_not_measured():
  present = np.tile(np.arange(F) % 3 == 0, (N, 1))
  drawn = faithfulness.random_sets(np.full(N, 3), present, ROWS, 0)
  assert (drawn.sum(1) == 3).all() and not (drawn & ~present).any()


def test_random_sets_are_spread_evenly():
  drawn = faithfulness.random_sets(np.full(2000, 3), np.ones((2000, 6), bool), np.arange(2000), 0)
  np.testing.assert_allclose(drawn.mean(0), 0.5, atol=0.04)


def test_member_agreement_is_one_for_equal_members_and_chance_for_strangers():
  rng = np.random.default_rng(0)
  salience = rng.random((3, N, F)) * PRESENT
  same = faithfulness.member_agreement(np.stack([salience[0]] * 3), PRESENT, 4, 100)
  other = faithfulness.member_agreement(salience, PRESENT, 4, 100)
  assert same['jaccard']['mean'] == 1 and same['pairs'] == 3
  assert other['jaccard']['mean'] == pytest.approx(other['random']['mean'], abs=0.03) and other['random']['mean'] < 0.3
  assert faithfulness.member_agreement(salience[:1], PRESENT, 4, 100) is None
