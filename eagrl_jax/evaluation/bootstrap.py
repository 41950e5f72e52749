"""Bootstrap by patient: every arm sees the same resamples, so differences are paired.

A resample is a row of multiplicities, not of indices. The order of the scores never changes,
so all resamples are scored at once by cumulative sums over one sorted vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from eagrl_jax.evaluation import metrics
from eagrl_jax.types import ArrayLike, EagrlError

_CELLS = 4_000_000  # resamples x rows scored at once: bounds memory at about 32 MB an array


def resample_counts(n_patients: int, n: int = 1000, seed: int = 42) -> np.ndarray:
  """How often each patient is drawn. Depends on nothing but the three arguments. int32 [n, n_patients]."""
  if n < 1:
    raise EagrlError(f'evaluate.n_resamples must be at least 1, got {n}')
  draws = np.random.default_rng(seed).integers(0, max(n_patients, 1), (n, n_patients))
  flat = draws + np.arange(n)[:, None] * n_patients
  return np.bincount(flat.ravel(), minlength=n * n_patients).reshape(n, n_patients).astype(np.int32)


def weighted_scores(label: ArrayLike, prob: ArrayLike, counts: np.ndarray) -> dict[str, np.ndarray]:
  """Every metric of every resample; counts [R, N] -> {'auroc': [R], 'auprc': [R], 'brier': [R], 'log_loss': [R]}.

  Equal to sklearn with `sample_weight`, or on the repeated rows. AUROC and AUPRC are NaN where a
  resample has one class.
  """
  y, p = metrics.check(label, prob)
  if not len(y):
    return {name: np.full(len(counts), np.nan) for name in metrics.METRICS}
  order = np.argsort(-p, kind='stable')
  y, p = y[order], p[order]
  starts = np.flatnonzero(np.r_[True, np.diff(p) != 0])  # tied scores enter the curves together
  squared, nll = (p - y) ** 2, metrics.log_losses(y, p)
  out: dict[str, list[np.ndarray]] = {name: [] for name in metrics.METRICS}
  rows = max(1, _CELLS // len(y))
  for lo in range(0, len(counts), rows):
    w = counts[lo:lo + rows][:, order].astype(np.float64)
    tp = np.cumsum(np.add.reduceat(w * y, starts, axis=1), axis=1)
    fp = np.cumsum(np.add.reduceat(w * (1 - y), starts, axis=1), axis=1)
    positive, negative = tp[:, -1], fp[:, -1]
    both = (positive > 0) & (negative > 0)
    d_tp, d_fp = np.diff(tp, axis=1, prepend=0), np.diff(fp, axis=1, prepend=0)
    precision = tp / np.maximum(tp + fp, 1)
    area = ((tp - d_tp / 2) * d_fp).sum(1)
    out['auroc'].append(np.where(both, area / np.maximum(positive * negative, 1), np.nan))
    out['auprc'].append(np.where(both, (precision * d_tp).sum(1) / np.maximum(positive, 1), np.nan))
    total = np.maximum(w.sum(1), 1)
    out['brier'].append(w @ squared / total)
    out['log_loss'].append(w @ nll / total)
  return {name: np.concatenate(parts) for name, parts in out.items()}


def bootstrap(label: ArrayLike, prob: ArrayLike, n: int = 1000, seed: int = 42,
              patient: ArrayLike | None = None) -> dict[str, dict]:
  """Point value and bootstrap distribution of every metric of `metrics.METRICS`.

  Args:
    label: [N] 0 or 1.
    prob: [N] in [0, 1].
    patient: [N] owner of each row, drawn with all its rows; None: one row a patient.

  Returns:
    {metric: {'point', 'mean', 'std', 'ci95': [lo, hi], 'n_resamples', 'skipped'}}; resamples with
    one class are skipped for all metrics and counted; 'reason' is added where a value is NaN.
  """
  y, p = metrics.check(label, prob)
  scores = weighted_scores(y, p, _row_counts(len(y), patient, n, seed))
  keep = np.isfinite(scores['auroc'])
  result = {}
  for name, values in scores.items():
    result[name] = {'point': metrics.METRICS[name](y, p), **spread_of(values[keep], len(values))}
    reason = metrics.undefined(y) or (None if keep.sum() > 1 else 'fewer than two resamples hold both classes')
    if reason:
      result[name]['reason'] = reason
  return result


def paired_difference(label: ArrayLike, prob_a: ArrayLike, prob_b: ArrayLike, n: int = 1000, seed: int = 42,
                      patient: ArrayLike | None = None) -> dict[str, dict]:
  """Arm a minus arm b on the same resamples, for every metric.

  Returns:
    {metric: {'diff', 'ci95', 'p', 'n_resamples', 'skipped'}}. 'diff' is the difference of the point
    values; 'p' is two-sided, twice the smaller share of resamples at or beyond 0, each share
    counted with one more resample (so never 0).
  """
  y, a = metrics.check(label, prob_a)
  _, b = metrics.check(label, prob_b)
  counts = _row_counts(len(y), patient, n, seed)
  scores_a, scores_b = weighted_scores(y, a, counts), weighted_scores(y, b, counts)
  keep = np.isfinite(scores_a['auroc'])
  result = {}
  for name, point in metrics.METRICS.items():
    gap = (scores_a[name] - scores_b[name])[keep]
    spread = spread_of(gap, n)
    tail = min((gap <= 0).sum(), (gap >= 0).sum()) + 1
    result[name] = {
        'diff': point(y, a) - point(y, b), 'ci95': spread['ci95'],
        'p': min(1.0, float(2 * tail / (len(gap) + 1))) if len(gap) else float('nan'),
        'n_resamples': spread['n_resamples'], 'skipped': spread['skipped']}
  return result


def paired_rows(label: ArrayLike, probs: Mapping[str, ArrayLike], pairs: Sequence[tuple[str, str]],
                names: Sequence[str] = ('auroc', 'auprc'), n: int = 1000, seed: int = 42,
                patient: ArrayLike | None = None) -> list[dict]:
  """`paired_difference` of named arms as the rows of metrics.json: {'a', 'b', 'metric', 'diff', 'ci95', 'p', …}."""
  rows = []
  for a, b in pairs:
    result = paired_difference(label, probs[a], probs[b], n, seed, patient)
    rows += [{'a': a, 'b': b, 'metric': name, **result[name]} for name in names]
  return rows


def mean_interval(values: ArrayLike, n: int = 1000, seed: int = 42) -> dict:
  """Mean of a per-patient quantity with its bootstrap interval. NaN = not defined for that patient.

  Returns:
    {'mean': of the sample, 'std': of the bootstrap means, 'ci95', 'n': patients with a value, 'n_resamples'}.
  """
  v = np.asarray(values, np.float64)
  defined = np.isfinite(v)
  weights = resample_counts(len(v), n, seed) * defined[None, :]
  total = weights.sum(1)
  means = (weights @ np.where(defined, v, 0))[total > 0] / total[total > 0]
  spread = spread_of(means, n)
  return {'mean': float(v[defined].mean()) if defined.any() else float('nan'), 'std': spread['std'],
          'ci95': spread['ci95'], 'n': int(defined.sum()), 'n_resamples': spread['n_resamples']}


def _row_counts(n_rows: int, patient: ArrayLike | None, n: int, seed: int) -> np.ndarray:
  """Multiplicity of every row: its patient's. [n, n_rows]"""
  if patient is None:
    return resample_counts(n_rows, n, seed)
  unique, owner = np.unique(np.asarray(patient), return_inverse=True)
  if len(owner) != n_rows:
    raise EagrlError(f'evaluate: {len(owner)} patient rows for {n_rows} labels')
  return resample_counts(len(unique), n, seed)[:, owner]


def spread_of(values: np.ndarray, drawn: int) -> dict:
  """Mean, standard deviation and interval of the resamples that have a value, out of those drawn."""
  nan = float('nan')
  enough = len(values) > 1
  lo, hi = np.percentile(values, [2.5, 97.5]) if enough else (nan, nan)
  return {'mean': float(values.mean()) if enough else nan, 'std': float(values.std(ddof=1)) if enough else nan,
          'ci95': [float(lo), float(hi)], 'n_resamples': len(values), 'skipped': drawn - len(values)}
