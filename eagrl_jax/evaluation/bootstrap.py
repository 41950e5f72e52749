"""Bootstrap by patient: every arm sees the same resamples, so differences are paired.

A resample is a row of multiplicities, not of indices. The order of the scores never changes,
so all resamples are scored at once by cumulative sums over one sorted vector.

A resample of patients that all have one outcome scores nothing. It is drawn again within the classes, and counted.
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
    raise EagrlError(f'evaluate.bootstrap={n} must be at least 1')
  return _draw(np.random.default_rng(seed), n, n_patients)


def _draw(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
  """How often each of `size` is among as many draws with replacement. int32 `[n, size]`"""
  flat = rng.integers(0, max(size, 1), (n, size)) + np.arange(n)[:, None] * size
  return np.bincount(flat.ravel(), minlength=n * size).reshape(n, size).astype(np.int32)


def resamples(label: ArrayLike, n: int = 1000, seed: int = 42,
              patient: ArrayLike | None = None) -> tuple[np.ndarray, int]:
  """How often each row is drawn, and how many resamples were drawn again because all their rows had one outcome.

  Those are drawn within the classes: of patients with positive rows alone, with negative rows alone and with both, as
  many of each as there are. They depend on labels, owners and seed, not on scores, so arms stay paired.

  Args:
    label: [N] 0 or 1; where it holds one class, nothing is drawn again.
    patient: [N] owner of each row, drawn with all its rows; None: one row a patient.

  Returns:
    `[n, N]` int32, and the count.
  """
  positive = np.asarray(label) == 1
  owner = np.arange(len(positive)) if patient is None else np.unique(np.asarray(patient), return_inverse=True)[1]
  if len(owner) != len(positive):
    raise EagrlError(f'evaluate: {len(owner)} patient rows for {len(positive)} labels')
  patients = int(owner.max(initial=-1)) + 1
  drawn = resample_counts(patients, n, seed)
  counts = drawn if patient is None else drawn[:, owner]
  again = np.flatnonzero(~((counts[:, positive] > 0).any(1) & (counts[:, ~positive] > 0).any(1)))
  if not len(again) or positive.all() or not positive.any():
    return counts, 0
  kind = sum(2**i * (np.bincount(owner, rows, patients) > 0) for i, rows in enumerate((positive, ~positive)))
  rng = np.random.default_rng((seed, 1))
  for members in (np.flatnonzero(kind == k) for k in (1, 2, 3)):
    drawn[again[:, None], members] = _draw(rng, len(again), len(members))
  return drawn if patient is None else drawn[:, owner], len(again)


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
    {metric: {'point', 'mean', 'std', 'ci95': [lo, hi], 'n_resamples', 'skipped', 'redrawn'}}; 'redrawn' counts the
    resamples that had one class, see `resamples`. Where the labels have one class all are skipped, for all metrics;
    'reason' is added where a value is NaN.
  """
  y, p = metrics.check(label, prob)
  counts, redrawn = resamples(y, n, seed, patient)
  scores = weighted_scores(y, p, counts)
  keep = np.isfinite(scores['auroc'])
  result = {}
  for name, values in scores.items():
    result[name] = {'point': metrics.METRICS[name](y, p), **spread_of(values[keep], len(values)), 'redrawn': redrawn}
    reason = metrics.undefined(y) or (None if keep.sum() > 1 else 'fewer than two resamples')
    if reason:
      result[name]['reason'] = reason
  return result


def paired_difference(label: ArrayLike, prob_a: ArrayLike, prob_b: ArrayLike, n: int = 1000, seed: int = 42,
                      patient: ArrayLike | None = None) -> dict[str, dict]:
  """Arm a minus arm b on the same resamples, for every metric.

  Returns:
    {metric: {'diff', 'ci95', 'p' of `two_sided`, 'n_resamples', 'skipped', 'redrawn'}}. 'diff' is the difference of
    the point values.
  """
  y, a = metrics.check(label, prob_a)
  _, b = metrics.check(label, prob_b)
  counts, redrawn = resamples(y, n, seed, patient)
  scores_a, scores_b = weighted_scores(y, a, counts), weighted_scores(y, b, counts)
  keep = np.isfinite(scores_a['auroc'])
  result = {}
  for name, point in metrics.METRICS.items():
    gap = (scores_a[name] - scores_b[name])[keep]
    spread = spread_of(gap, n)
    result[name] = {
        'diff': point(y, a) - point(y, b), 'ci95': spread['ci95'],
        'p': two_sided(gap),
        'n_resamples': spread['n_resamples'], 'skipped': spread['skipped'], 'redrawn': redrawn}
  return result


def paired_rows(label: ArrayLike, probs: Mapping[str, ArrayLike], pairs: Sequence[tuple[str, str]],
                names: Sequence[str] = ('auroc', 'auprc', 'log_loss'), n: int = 1000, seed: int = 42,
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


def spread_of(values: np.ndarray, drawn: int) -> dict:
  """Mean, standard deviation and interval of the resamples that have a value, out of those drawn."""
  nan = float('nan')
  enough = len(values) > 1
  return {'mean': float(values.mean()) if enough else nan, 'std': float(values.std(ddof=1)) if enough else nan,
          'ci95': interval(values), 'n_resamples': len(values), 'skipped': drawn - len(values)}


def interval(values: np.ndarray) -> list[float]:
  """Percentile interval [lo, hi] of 95 % of the resamples; NaN of fewer than two."""
  return [float(v) for v in np.percentile(values, [2.5, 97.5])] if len(values) > 1 else [float('nan')] * 2


def two_sided(gap: np.ndarray) -> float:
  """p of a difference by its resamples: twice the smaller share at or beyond 0, each with one more, so never 0."""
  tail = min((gap <= 0).sum(), (gap >= 0).sum()) + 1
  return min(1.0, float(2 * tail / (len(gap) + 1))) if len(gap) else float('nan')
