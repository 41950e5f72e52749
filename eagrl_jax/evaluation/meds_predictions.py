"""Predictions in the columns that meds-evaluation 0.0.6 reads: those of its PredictionSchema, which takes no others.

https://github.com/kamilest/meds-evaluation. Its figures of such files are kept in tests/golden/meds_evaluation.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from eagrl_jax.evaluation import metrics
from eagrl_jax.types import ArrayLike

SCHEMA = pa.schema([
    pa.field('subject_id', pa.int64(), nullable=False),
    pa.field('prediction_time', pa.timestamp('us'), nullable=False),
    pa.field('boolean_value', pa.bool_(), nullable=False),
    pa.field('predicted_boolean_value', pa.bool_(), nullable=False),
    pa.field('predicted_boolean_probability', pa.float32(), nullable=False)])
_HOUR = 3.6e9  # microseconds


def integers(subject_id: np.ndarray) -> np.ndarray | None:
  """`[N] str -> [N] int64` of ids that all are whole numbers as numbers are written; None where one is not."""
  try:
    found = np.array([int(i) for i in subject_id], np.int64)
  except (ValueError, OverflowError):
    return None
  return found if (found.astype(str) == subject_id).all() else None  # '007' is a name: '7' may be another


def after_epoch(hours: ArrayLike) -> np.ndarray:
  """Hours as times from 1970-01-01 on. `[N] -> [N] datetime64[us]`"""
  return np.round(np.asarray(hours, np.float64) * _HOUR).astype(np.int64).astype('datetime64[us]')


def table(subject: np.ndarray, time: np.ndarray, label: ArrayLike, prob: ArrayLike, threshold: float) -> pa.Table:
  """One row a patient, in `SCHEMA`.

  Args:
    subject: [N] int64.
    time: [N] datetime64[us], when each is predicted.
    label: [N] outcomes 0 and 1.
    prob: [N] of the outcome; rounded to float32, which is the schema's.
    threshold: a probability from here on foretells the outcome.

  Raises:
    EagrlError: see `metrics.check`.
  """
  y, p = metrics.check(label, prob)
  return pa.table([subject, time, y.astype(bool), p >= threshold, p.astype(np.float32)], schema=SCHEMA)
