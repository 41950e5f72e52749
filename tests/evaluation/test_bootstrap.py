"""The bootstrap against scikit-learn on explicitly repeated rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from eagrl_jax.evaluation import bootstrap as bs
from eagrl_jax.types import EagrlError


def cohort(n: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Labels, an informative arm with many ties, an uninformative arm."""
  rng = np.random.default_rng(seed)
  label = (rng.random(n) < 0.3).astype(int)
  good = np.round(np.clip(0.35 + 0.25 * label + rng.normal(0, 0.2, n), 0, 1), 1)
  return label, good, np.round(rng.random(n), 2)


def test_every_resample_equals_sklearn_on_the_repeated_rows(monkeypatch):
  label, prob, _ = cohort()
  counts = bs.resample_counts(len(label), 25, seed=3)
  monkeypatch.setattr(bs, '_CELLS', 7 * len(label))  # several blocks
  scores = bs.weighted_scores(label, prob, counts)
  for r, count in enumerate(counts):
    y, p = np.repeat(label, count), np.repeat(prob, count)
    assert scores['auroc'][r] == pytest.approx(sk.roc_auc_score(y, p), abs=1e-12)
    assert scores['auprc'][r] == pytest.approx(sk.average_precision_score(y, p), abs=1e-12)
    assert scores['brier'][r] == pytest.approx(np.mean((y - p) ** 2), abs=1e-12)
    assert scores['log_loss'][r] == pytest.approx(sk.log_loss(y, np.clip(p, 0.01, 0.99), labels=[0, 1]), abs=1e-12)


def test_summary_is_that_of_an_index_bootstrap():
  label, prob, _ = cohort()
  result = bs.bootstrap(label, prob, n=200, seed=42)['auroc']
  draws = np.random.default_rng(42).integers(0, len(label), (200, len(label)))
  values = [sk.roc_auc_score(label[d], prob[d]) for d in draws]
  assert result['point'] == sk.roc_auc_score(label, prob)
  assert result['mean'] == pytest.approx(np.mean(values)) and result['std'] == pytest.approx(np.std(values, ddof=1))
  np.testing.assert_allclose(result['ci95'], np.percentile(values, [2.5, 97.5]))
  assert (result['n_resamples'], result['skipped'], result['redrawn']) == (200, 0, 0)
  assert result == bs.bootstrap(label, prob, n=200, seed=42)['auroc']
  assert result != bs.bootstrap(label, prob, n=200, seed=43)['auroc']


def test_one_class_resamples_are_drawn_again_within_the_classes_and_counted():
  label, prob = np.array([1, 0, 0, 0]), np.array([0.9, 0.2, 0.3, 0.4])
  result = bs.bootstrap(label, prob, n=400, seed=0)
  plain = bs.resample_counts(4, 400, 0)
  alone = np.isin(plain[:, 0], (0, 4))
  assert 80 < alone.sum() < 180  # (3/4)^4 = .32 of 400
  assert {(m['redrawn'], m['skipped'], m['n_resamples']) for m in result.values()} == {(alone.sum(), 0, 400)}
  counts, redrawn = bs.resamples(label, 400, 0)
  assert redrawn == alone.sum() and counts.dtype == np.int32
  np.testing.assert_array_equal(counts[~alone], plain[~alone])  # what had both classes stays as it was
  assert (counts[alone, 0] == 1).all() and (counts[alone].sum(1) == 4).all()
  assert len(np.unique(counts[alone], axis=0)) > 5  # with replacement: 10 are possible
  np.testing.assert_array_equal(counts, bs.resamples(label, 400, 0)[0])
  assert (counts != bs.resamples(label, 400, 1)[0]).any()
  values = [sk.roc_auc_score(np.repeat(label, c), np.repeat(prob, c)) for c in counts]
  assert result['auroc']['mean'] == pytest.approx(np.mean(values))


def test_arms_stay_paired_where_resamples_are_drawn_again():
  label = np.array([1, 0, 0, 0, 0, 0])
  good, bad = np.array([0.9, 0.2, 0.3, 0.4, 0.1, 0.95]), np.array([0.3, 0.2, 0.6, 0.4, 0.1, 0.2])
  result = bs.paired_difference(label, good, bad, n=100, seed=5)['auroc']
  counts, redrawn = bs.resamples(label, 100, 5)
  gaps = [np.subtract(*(sk.roc_auc_score(np.repeat(label, c), np.repeat(p, c)) for p in (good, bad))) for c in counts]
  np.testing.assert_allclose(result['ci95'], np.percentile(gaps, [2.5, 97.5]))
  assert (result['redrawn'], result['skipped'], result['n_resamples']) == (redrawn, 0, 100) and redrawn > 10
  same = bs.paired_difference(label, good, good, n=100, seed=5)['auroc']
  assert same['ci95'] == [0, 0] and same['p'] == 1


def test_patients_with_rows_of_both_classes_are_a_class_of_their_own():
  patient = np.array(['a', 'a', 'b', 'c', 'd', 'd'])
  label = np.array([1, 1, 0, 0, 0, 1])  # a positive, b and c negative, d both
  plain = bs.resample_counts(4, 200, 0)
  alone = ((plain[:, [0, 3]] == 0).all(1)) | ((plain[:, [1, 2, 3]] == 0).all(1))
  counts, redrawn = bs.resamples(label, 200, 0, patient)
  assert 5 < redrawn == alone.sum() and (counts[alone][:, [0, 1, 4, 5]] == 1).all()
  assert (counts[alone, 2] + counts[alone, 3] == 2).all()
  np.testing.assert_array_equal(counts[~alone], plain[~alone][:, [0, 0, 1, 2, 3, 3]])
  both, redrawn = bs.resamples([1, 0, 1, 0], 20, 0, [0, 0, 1, 1])
  assert redrawn == 0 and (both[:, 0] == both[:, 1]).all()


def test_one_class_cohort_is_nan_with_a_reason():
  result = bs.bootstrap([0, 0, 0], [0.1, 0.2, 0.3], n=20)
  assert math.isnan(result['auroc']['point']) and math.isnan(result['auroc']['ci95'][0])
  assert (result['auroc']['skipped'], result['auroc']['redrawn']) == (20, 0)
  assert 'one class' in result['auroc']['reason']
  assert result['brier']['point'] == pytest.approx((0.01 + 0.04 + 0.09) / 3)
  assert math.isnan(bs.paired_difference([0, 0], [0.1, 0.2], [0.3, 0.4], n=20)['auroc']['p'])


def test_rows_of_one_patient_are_drawn_together():
  label, prob, _ = cohort(40)
  one = bs.bootstrap(label, prob, n=100)
  twice = bs.bootstrap(np.tile(label, 2), np.tile(prob, 2), n=100, patient=np.tile(np.arange(40), 2))
  assert twice['auroc']['std'] == pytest.approx(one['auroc']['std'], abs=1e-12)
  with pytest.raises(EagrlError, match='evaluate.bootstrap=0'):
    bs.resample_counts(4, 0)
  with pytest.raises(EagrlError, match='patient rows'):
    bs.bootstrap(label, prob, patient=np.arange(3))


def test_paired_difference():
  label, good, bad = cohort()
  result = bs.paired_difference(label, good, bad, n=300)['auroc']
  draws = np.random.default_rng(42).integers(0, len(label), (300, len(label)))
  gaps = np.array([sk.roc_auc_score(label[d], good[d]) - sk.roc_auc_score(label[d], bad[d]) for d in draws])
  assert result['diff'] == pytest.approx(sk.roc_auc_score(label, good) - sk.roc_auc_score(label, bad))
  np.testing.assert_allclose(result['ci95'], np.percentile(gaps, [2.5, 97.5]))
  assert result['p'] == pytest.approx(2 * (min((gaps <= 0).sum(), (gaps >= 0).sum()) + 1) / 301)
  assert result['p'] < 0.05
  swapped = bs.paired_difference(label, bad, good, n=300)['auroc']
  assert swapped['diff'] == -result['diff'] and swapped['p'] == result['p']
  same = bs.paired_difference(label, good, good, n=50)['auroc']
  assert same['diff'] == 0 and same['ci95'] == [0, 0] and same['p'] == 1


def test_paired_rows_name_the_arms():
  label, good, bad = cohort()
  rows = bs.paired_rows(label, {'rl': good, 'base': bad}, [('rl', 'base')], n=50)
  assert [(r['a'], r['b'], r['metric']) for r in rows] == [
      ('rl', 'base', metric) for metric in ('auroc', 'auprc', 'log_loss')]
  assert rows[1]['diff'] == bs.paired_difference(label, good, bad, n=50)['auprc']['diff']


def test_mean_interval_leaves_undefined_patients_out():
  values = np.array([0.2, np.nan, 0.6, 1.0])
  result = bs.mean_interval(values, n=200)
  draws = np.random.default_rng(42).integers(0, 4, (200, 4))
  means = [np.nanmean(values[d]) for d in draws if np.isfinite(values[d]).any()]
  assert result['mean'] == pytest.approx(0.6) and result['n'] == 3
  np.testing.assert_allclose(result['ci95'], np.percentile(means, [2.5, 97.5]))
  assert math.isnan(bs.mean_interval([np.nan])['mean'])


def test_interval_covers_the_true_auroc():
  """Two normals one standard deviation apart: AUROC = Φ(1/√2) = .7602."""
  rng = np.random.default_rng(7)
  hits = 0
  for seed in range(60):
    label = np.repeat([0, 1], 60)
    prob = 1 / (1 + np.exp(-rng.normal(label, 1)))
    lo, hi = bs.bootstrap(label, prob, n=200, seed=seed)['auroc']['ci95']
    hits += lo < 0.7602 < hi
  assert hits >= 51
