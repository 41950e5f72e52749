"""Agreement of names and attention with salience: by hand, and chance by exact expectation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from eagrl_jax.evaluation import agreement


def test_jaccard_by_hand():
  salience = np.array([[0.4, 0.3, 0.2, 0.1, 0.0]] * 4 + [[0.0] * 5])
  named = [[0, 1], [1, 1, 3, 0], [], [4], []]  # the second list counts 1 and 3: two distinct, then the cap
  np.testing.assert_allclose(agreement.jaccard_at_k(named, salience, 2), [1, 1 / 3, 0, 0, 0])


def test_random_control_is_the_hypergeometric_expectation():
  rng = np.random.default_rng(0)
  f, k = 12, 4
  salience = rng.dirichlet(np.ones(f), 6)
  present = rng.random((6, f)) < 0.7
  salience = np.where(present, salience, 0)
  named = [list(rng.permutation(f)[:n]) for n in (0, 1, 3, 4, 4, 9)]
  chance = agreement.random_jaccard_at_k(named, salience, present, k, draws=20_000)
  for i in range(6):
    here, good = int(present[i].sum()), min(k, int((salience[i] > 0).sum()))
    drawn = min(len(named[i]), k, here)
    hit = np.arange(drawn + 1)
    expected = (stats.hypergeom(here, good, drawn).pmf(hit) * hit / (good + drawn - hit)).sum()
    assert chance[i] == pytest.approx(expected, abs=0.01)


def test_random_control_is_seeded_by_patient():
  salience = np.eye(6)[[0, 1, 2]] + 0.1
  named, present = [[0], [0, 1], [2]], np.ones((3, 6), bool)
  chance = agreement.random_jaccard_at_k(named, salience, present, 2, seed=1)
  np.testing.assert_array_equal(chance, agreement.random_jaccard_at_k(named, salience, present, 2, seed=1))
  fewer = agreement.random_jaccard_at_k(named[:2], salience[:2], present[:2], 2, seed=1)
  np.testing.assert_array_equal(chance[:2], fewer)
  assert (chance != agreement.random_jaccard_at_k(named, salience, present, 2, seed=2)).any()


def test_attention_kl_by_hand():
  attention = [[2.0, 2.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0, 0, 0]]
  salience = [[0.25, 0.75, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [1.0, 0, 0]]
  kl = agreement.attention_kl(attention, salience)
  assert kl[0] == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
  assert kl[1] == pytest.approx(0.5 * math.log(0.5 / 1e-6) + 0.5 * math.log(0.5))
  assert np.isnan(kl[2:]).all()
  np.testing.assert_allclose(agreement.attention_kl(salience, salience)[:2], 0, atol=1e-12)


def test_permuted_control_exceeds_an_aligned_policy_and_equals_a_uniform_one():
  rng = np.random.default_rng(0)
  salience = rng.dirichlet(np.full(10, 0.3), 40)
  present = np.ones_like(salience, bool)
  control = agreement.permuted_attention_kl(salience, salience, present)
  assert control.mean() > agreement.attention_kl(salience, salience).mean() + 1
  uniform = np.ones_like(salience)
  np.testing.assert_allclose(agreement.permuted_attention_kl(uniform, salience, present),
                             agreement.attention_kl(uniform, salience))


def test_permutation_stays_among_the_features_present():
  salience = np.array([[0.7, 0.3, 0.0, 0.0]])
  attention = np.array([[0.5, 0.5, 0.0, 0.0]])  # a permutation onto an absent feature would cost log(1/1e-6)
  present = np.array([[True, True, False, False]])
  control = agreement.permuted_attention_kl(attention, salience, present)
  np.testing.assert_allclose(control, agreement.attention_kl(attention, salience))


def test_what_an_arm_was_not_shown_is_no_disagreement():
  rng = np.random.default_rng(1)
  salience = rng.dirichlet(np.full(20, 0.5), 50) + 1e-3
  shown = np.arange(20)[None, :] % 3 > np.arange(50)[:, None] % 2
  named = [list(np.argsort(-s)[:5]) for s in salience * shown]
  entry = agreement.named_agreement(named, shown, 5, expert=salience, truth=salience, n=50)
  assert entry['expert']['mean'] == entry['truth']['mean'] == 1
  attention = agreement.attention_agreement(salience * shown, salience, shown, n=50)
  assert attention['mean'] == pytest.approx(0, abs=1e-12) and attention['permuted']['mean'] > 0.5


def test_entries_of_metrics_json():
  rng = np.random.default_rng(0)
  salience = rng.dirichlet(np.full(20, 0.5), 50) + 1e-3
  present = np.ones_like(salience, bool)
  named = [list(np.argsort(-s)[:5]) for s in salience]
  entry = agreement.named_agreement(named, present, 5, expert=salience, truth=salience[::-1], n=200)
  assert entry['k'] == 5 and entry['expert']['mean'] == 1
  assert entry['random']['ci95'][0] <= entry['random']['mean'] <= entry['random']['ci95'][1] < 0.3
  assert entry['truth']['mean'] < 0.4 and entry['random_truth']['mean'] < 0.3
  assert 'truth' not in agreement.named_agreement(named, present, 5, expert=salience, n=50)
  entry = agreement.attention_agreement(salience, salience, present, n=200)
  assert entry['mean'] == pytest.approx(0, abs=1e-12) and entry['permuted']['ci95'][0] > 0.5
