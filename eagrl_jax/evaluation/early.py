"""The early score (ES) of the TJH benchmarks: a death foretold early earns more, one missed late costs more.

Ours is one prediction a patient. With l the stay that is left after it and tau half a usual stay: a true positive
earns min(l / tau, 1), a false negative min(l / tau, 1) - 1, a false positive -0.1, a true negative nothing; the score
is the sum over the sum of a perfect predictor, at least -1. Gao et al., arXiv 2209.07805.
"""

from __future__ import annotations

import numpy as np

from eagrl_jax.evaluation import bootstrap, metrics
from eagrl_jax.types import ArrayLike, EagrlError

_FALSE_ALARM = -0.1
_FLOOR = -1.0
_TRIM = (0.05, 0.95)


def half_mean_stay(stay: ArrayLike) -> float:
  """tau: half the mean of the train patients' stays within their closed 5-95 % range; NaN where none is known.

  Args:
    stay: [N] length of each whole stay, NaN unknown; tau comes in its unit.
  """
  known = np.asarray(stay, np.float64)
  known = known[np.isfinite(known)]
  if not len(known):
    return float('nan')
  low, high = np.quantile(known, _TRIM)
  return float(0.5 * known[(known >= low) & (known <= high)].mean())


def score(label: ArrayLike, prob: ArrayLike, left: ArrayLike, tau: float, threshold: float = 0.5, n: int = 1000,
          seed: int = 42) -> dict:
  """The score with its bootstrap interval, on the resamples of `bootstrap.bootstrap`.

  Args:
    left: [N] stay left after the prediction, in tau's unit; a patient of unknown stay (NaN) is not scored.
    threshold: a probability from here on foretells the outcome.

  Returns:
    {'point', 'mean', 'std', 'ci95', 'n_resamples', 'skipped', 'redrawn', 'n': patients scored}; resamples in which
    nothing could be foretold in time are skipped and counted, 'reason' is added where a value is NaN.

  Raises:
    EagrlError: lengths differ, a negative stay.
  """
  gain, best = gains(label, prob, left, tau, threshold)
  drawn, redrawn = bootstrap.resamples(label, n, seed)
  counts = drawn.astype(np.float64)
  values = _ratio(counts @ gain, counts @ best)
  point = float(_ratio(gain.sum(keepdims=True), best.sum(keepdims=True))[0])
  result = {'point': point, **bootstrap.spread_of(values[np.isfinite(values)], n), 'redrawn': redrawn,
            'n': int(np.isfinite(np.asarray(left, np.float64)).sum())}
  if not np.isfinite(point):
    result['reason'] = 'no patient with the outcome whose stay goes on after the prediction'
  return result


def gains(label: ArrayLike, prob: ArrayLike, left: ArrayLike, tau: float,
          threshold: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
  """What each prediction earns and what a perfect one would; 0 for a patient of unknown stay. `[N], [N]`"""
  y, p = metrics.check(label, prob)
  stay = np.asarray(left, np.float64)
  if stay.shape != y.shape or (stay < 0).any():
    raise EagrlError(f'evaluate: stays must be {len(y)} times from 0 on, got {stay.shape}')
  early = np.minimum(stay / tau, 1.0) if tau > 0 else np.ones_like(stay)
  foretold = p >= threshold
  gain = np.where(y == 1, early - ~foretold, np.where(foretold, _FALSE_ALARM, 0.0))
  known = np.isfinite(stay) & np.isfinite(tau)
  return np.where(known, gain, 0.0), np.where(known & (y == 1), early, 0.0)


def _ratio(gain: np.ndarray, best: np.ndarray) -> np.ndarray:
  return np.where(best > 0, np.maximum(gain / np.where(best > 0, best, 1.0), _FLOOR), np.nan)
