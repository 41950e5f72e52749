"""What is usual in a cohort: for features of which nobody has said what is normal, or for all.

Without a range a record's values have no flags: a small policy, which reads by them, learns nothing of the feature, and
a large one is told no reference. The middle of the train patients' values is no range of healthy people, and is called
otherwise in prompts and reports. Where a textbook's ranges are known, these were no better: docs/results.md.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from eagrl_jax.ehr.features import FeatureTable

MIDDLE = (0.2, 0.8)  # quantiles: two of five values are flagged
LEAST = 20  # train patients with a value: fewer would tell of single ones


def ranges(features: FeatureTable, values: np.ndarray, train: np.ndarray, replace: bool = False) -> FeatureTable:
  """The table with a usual range for every numeric feature that has no bound and values enough.

  Args:
    values: `[N, T, F]`, NaN where not measured.
    train: rows of the train patients.
    replace: also for those that have a reference range.
  """
  specs = []
  for f, spec in enumerate(features):
    mine = values[train, :, f]
    there = ~np.isnan(mine)
    wanted = replace or (spec.ref_low is None and spec.ref_high is None)
    if wanted and not spec.levels and there.any(1).sum() >= LEAST:
      low, high = np.quantile(mine[there].astype(np.float64), MIDDLE)
      low, high = (_rounded(bound, high - low) for bound in (low, high))
      spec = dataclasses.replace(spec, ref_low=low, ref_high=high, usual=True)
    specs.append(spec)
  return FeatureTable(tuple(specs))


def _rounded(bound: float, width: float) -> float:
  """To a hundredth of the range's width or less; without a width to six digits."""
  return float(round(bound, 2 - math.floor(math.log10(width)))) if width else float(f'{bound:.6g}')
