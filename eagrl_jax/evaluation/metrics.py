"""How good a vector of probabilities is: discrimination, overall error, calibration.

A test set with one class has no AUROC and no AUPRC: they are NaN, and `undefined` says why.
"""

from __future__ import annotations

import numpy as np
from sklearn import metrics as sk

from eagrl_jax.types import ArrayLike, EagrlError

CLIP = 0.01  # a policy writes 0.dd: 0.00 and 1.00 would make one wrong answer cost an infinite log loss
FINITE = 1e-6  # of a logit; at CLIP the risks of a rare outcome would be cut off, and true ones look too mild


def check(label: ArrayLike, prob: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
  """Validated (label, prob), both float64 [N].

  Raises:
    EagrlError: another rank, unequal lengths, a label outside {0, 1}, a probability outside [0, 1].
  """
  y, p = np.asarray(label, np.float64), np.asarray(prob, np.float64)
  if y.ndim != 1 or y.shape != p.shape:
    raise EagrlError(f'evaluate: label and prob must be vectors of one length, got {y.shape} and {p.shape}')
  if not np.isin(y, (0.0, 1.0)).all():
    raise EagrlError('evaluate: label must hold only 0 and 1')
  if not ((p >= 0) & (p <= 1)).all():
    raise EagrlError('evaluate: prob must lie in [0, 1]; score an unparsed answer at the training prevalence')
  return y, p


def undefined(label: ArrayLike) -> str | None:
  """Why AUROC and AUPRC do not exist for these labels; None when they do."""
  y = np.asarray(label)
  if not len(y):
    return 'no patients'
  if y.min() == y.max():
    return f'only one class: all {len(y)} patients have outcome {int(y[0])}'
  return None


def auroc(label: ArrayLike, prob: ArrayLike) -> float:
  """Area under the ROC curve; NaN when `undefined`."""
  y, p = check(label, prob)
  return float('nan') if undefined(y) else float(sk.roc_auc_score(y, p))


def auprc(label: ArrayLike, prob: ArrayLike) -> float:
  """Average precision (no interpolation); NaN when `undefined`."""
  y, p = check(label, prob)
  return float('nan') if undefined(y) else float(sk.average_precision_score(y, p))


def brier(label: ArrayLike, prob: ArrayLike) -> float:
  """Mean squared error of the probability; NaN without patients."""
  y, p = check(label, prob)
  return float(np.mean((p - y) ** 2)) if len(y) else float('nan')


def log_loss(label: ArrayLike, prob: ArrayLike) -> float:
  """Mean negative log-likelihood in nats, probabilities clipped to [CLIP, 1 − CLIP]; NaN without patients."""
  y, p = check(label, prob)
  return float(np.mean(log_losses(y, p))) if len(y) else float('nan')


def log_losses(y: np.ndarray, p: np.ndarray) -> np.ndarray:
  """Per-patient negative log-likelihood in nats, clipped as in `log_loss`. [N]"""
  p = np.clip(p, CLIP, 1 - CLIP)
  return -(y * np.log(p) + (1 - y) * np.log1p(-p))


def min_precision_recall(label: ArrayLike, prob: ArrayLike) -> float:
  """Largest min(precision, recall) over all thresholds, `min(P+, Se)` of the EHR literature; NaN when `undefined`."""
  y, p = check(label, prob)
  if undefined(y):
    return float('nan')
  precision, recall, _ = sk.precision_recall_curve(y, p)
  return float(np.minimum(precision, recall).max())


def expected_calibration_error(label: ArrayLike, prob: ArrayLike, bins: int = 10) -> float:
  """Mean |observed - predicted| over equal-width bins, weighted by their patients (Naeini 2015); NaN without any."""
  found = calibration_bins(label, prob, bins)
  count = found['count']
  gap = np.abs(found['observed'] - found['predicted'])
  return float(count @ gap / count.sum()) if count.sum() else float('nan')


def net_benefit(label: ArrayLike, prob: ArrayLike, thresholds: ArrayLike) -> np.ndarray:
  """Decision curve: true positives less false ones at the threshold's odds, a patient (Vickers and Elkin 2006).

  Args:
    thresholds: `[K]` in (0, 1); patients at or above one are treated.

  Returns:
    `[K]`; treating everyone is `net_benefit(label, ones, thresholds)`, no one 0.
  """
  y, p = check(label, prob)
  t = np.asarray(thresholds, np.float64)
  treated = p[None, :] >= t[:, None]
  harm = (treated & (y == 0)).sum(1) * t / (1 - t)
  return ((treated & (y == 1)).sum(1) - harm) / max(len(y), 1)


METRICS = {'auroc': auroc, 'auprc': auprc, 'brier': brier, 'log_loss': log_loss}


def beside(label: ArrayLike, prob: ArrayLike) -> dict:
  """What is said of an arm beside `METRICS`: {'min_precision_recall', 'calibration_error', 'calibration'}."""
  return {'min_precision_recall': min_precision_recall(label, prob),
          'calibration_error': expected_calibration_error(label, prob), 'calibration': calibration(label, prob)}


def calibration(label: ArrayLike, prob: ArrayLike) -> dict[str, float]:
  """Logistic recalibration: slope 1 and intercept 0 are perfect.

  `slope` comes from logit P(y) = a + slope · logit p; `intercept` (calibration in the large) from
  the same with the slope held at 1 (Cox 1958). Probabilities are clipped to [FINITE, 1 − FINITE].
  NaN where the fit does not exist: one class, constant predictions, or perfect separation.
  """
  y, p = check(label, prob)
  if undefined(y):
    return {'slope': float('nan'), 'intercept': float('nan')}
  x = _design(p)
  intercept = _logistic_fit(x[:, :1], y, x[:, 1])
  both = _logistic_fit(x, y, 0 * p)
  return {'slope': float(both[-1]), 'intercept': float(intercept[0])}


def recalibrated_log_loss(label: ArrayLike, prob: ArrayLike) -> float:
  """The log loss that is left after the slope and intercept which are best on these very patients.

  What it lacks to `log_loss` is calibration, the rest is how well patients are told apart. NaN where `calibration` is.
  """
  y, p = check(label, prob)
  if undefined(y):
    return float('nan')
  x = _design(p)
  fit = _logistic_fit(x, y, 0 * p)
  if not np.isfinite(fit).all():
    return float('nan')
  logit = x @ fit
  return float(np.mean(np.logaddexp(0, logit) - y * logit))


def _design(p: np.ndarray) -> np.ndarray:
  """One and the logit of each probability. [N] -> [N, 2]"""
  p = np.clip(p, FINITE, 1 - FINITE)
  return np.stack([np.ones_like(p), np.log(p) - np.log1p(-p)], 1)


def _logistic_fit(x: np.ndarray, y: np.ndarray, offset: np.ndarray) -> np.ndarray:
  """Maximum likelihood by Newton's method; NaN where it does not converge. x [N, P] -> [P].

  A step is halved while it lowers the likelihood: far from the maximum a whole one leads ever further away.
  """

  def likelihood(w):
    logit = x @ w + offset
    return y @ logit - np.logaddexp(0, logit).sum()

  w = np.zeros(x.shape[1])
  for _ in range(50):
    mean = 1 / (1 + np.exp(-np.clip(x @ w + offset, -30, 30)))
    hessian = (x * (mean * (1 - mean))[:, None]).T @ x
    if np.linalg.cond(hessian) > 1e10:
      break
    step = np.linalg.solve(hessian, x.T @ (y - mean))
    here = likelihood(w)
    while likelihood(w + step) < here - 1e-9 * (1 + abs(here)):
      step = step / 2
    w = w + step
    if np.abs(step).max() < 1e-10:
      return w
  return np.full(x.shape[1], np.nan)


def calibration_bins(label: ArrayLike, prob: ArrayLike, bins: int = 10) -> dict[str, np.ndarray]:
  """Equal-width bins of the probability; empty bins are left out.

  Returns:
    'predicted' mean probability, 'observed' share of positives, 'count' patients, 'bin' from 0: each [bins used].
  """
  y, p = check(label, prob)
  which = np.minimum(np.round(p * bins, 6).astype(int), bins - 1)  # .7 of ten bins is at the edge, not 6.999...
  count = np.bincount(which, minlength=bins)
  used = count > 0
  predicted, observed = (np.bincount(which, weights=v, minlength=bins)[used] / count[used] for v in (p, y))
  return {'predicted': predicted, 'observed': observed, 'count': count[used], 'bin': np.flatnonzero(used)}
