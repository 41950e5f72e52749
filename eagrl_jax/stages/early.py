"""The early score of an evaluation: how far ahead of the end of the stay its predictions were made."""

from __future__ import annotations

import dataclasses

import numpy as np

from eagrl_jax.evaluation import early
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages.context import Context


@dataclasses.dataclass(frozen=True)
class Early:
  """What the score is measured against."""

  tau: float  # hours
  threshold: float
  label: np.ndarray  # [n]
  left: np.ndarray  # [n] hours from the prediction to the end of the stay, NaN unknown
  resamples: int

  def entry(self, prob: np.ndarray) -> dict[str, dict]:
    """An arm's entry of metrics.json. `prob [n]`"""
    return {'early_score': early.score(self.label, prob, self.left, self.tau, self.threshold, self.resamples)}

  def settings(self) -> dict:
    """What is said of it once, beside the arms."""
    return {'tau_hours': self.tau, 'threshold': self.threshold, 'n': int(np.isfinite(self.left).sum())}


def of(context: Context, home: data_lib.Data, data: data_lib.Data, rows: np.ndarray) -> Early | None:
  """For `rows` of `data`, with tau of the train patients of `home`; None where a source does not know stays' ends."""
  ends, known = data.cohort.stay_end, home.cohort.stay_end
  if ends is None or known is None:
    return None
  tau = early.half_mean_stay(known[home.splits.train])
  left = np.maximum(ends - data_lib.prediction_hours(data, context.config.data.window_hours), 0)[rows]
  if not np.isfinite(tau) or np.isnan(left).all():
    return None
  threshold = context.config.evaluate.get('threshold', 0.5)  # runs of before this field
  return Early(tau, threshold, data.cohort.label[rows].astype(int), left, context.config.evaluate.bootstrap)
