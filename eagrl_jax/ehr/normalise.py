"""Expert inputs: z-scores by train-only statistics, forward-filled, with a mask of what was measured.

Following ALGORITHM §1 but with the train quantiles inclusive: dropping values that lie exactly on
an assay limit would move the statistics away from most of the data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np

from eagrl_jax.ehr import channels
from eagrl_jax.ehr.features import FeatureTable
from eagrl_jax.ehr.records import Cohort, Visits
from eagrl_jax.types import EagrlError, ExpertBatch, made_again

_CLIP = 8.0
_TRIM = (0.05, 0.95)
_ARRAYS = {'log': bool, 'mean': np.float32, 'std': np.float32, 'median': np.float32, 'n': np.int64}


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Of the train patients only, on the log1p scale where `log` is set."""

  names: tuple[str, ...]
  log: np.ndarray  # [F] bool
  mean: np.ndarray  # [F] float32
  std: np.ndarray  # [F] float32, positive
  median: np.ndarray  # [F] float32, 0 where never seen
  n: np.ndarray  # [F] int64, train visits with a value
  flat: tuple[str, ...]  # features that never vary or never occur in train: std is 1
  age_mean: float
  age_std: float
  levels: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)  # of `channels.seen_levels`
  made_of: str = ''  # of `origin`; '' of a run from before it was written down


def fit(visits: Visits, rows_train: np.ndarray, features: FeatureTable, age: np.ndarray) -> Statistics:
  """Statistics over the train patients' visits.

  Mean and std use the values inside the closed 5–95 % quantile range. Where more than nine tenths
  of the values sit on one number that range has no width, and all values are used instead.

  Args:
    visits: of the whole cohort.
    rows_train: [n] row numbers of the train patients.
    features: the cohort's feature table.
    age: [N] years, NaN unknown.
  """
  log = np.array([s.log for s in features], bool)
  train = _transform(visits.values[rows_train], log)
  mean, std, median = (np.zeros(len(features), np.float32) for _ in range(3))
  n = np.sum(~np.isnan(train), (0, 1))
  flat = []
  for f, spec in enumerate(features):
    x = train[..., f]
    x = np.sort(x[~np.isnan(x)])  # sorted, so that the sums do not depend on the order of patients
    if len(x):
      low, high = np.quantile(x, _TRIM)
      kept = x[(x >= low) & (x <= high)]
      if not _varies(kept):
        kept = x
      mean[f], median[f] = kept.mean(), np.median(x)
      std[f] = kept.std() if _varies(kept) else 0
    if std[f] == 0:
      std[f] = 1
      flat.append(spec.name)
  years = np.sort(age[rows_train][~np.isnan(age[rows_train])].astype(np.float64))
  spread = float(years.std()) if len(years) and _varies(years) else 1.0
  return Statistics(features.names, log, mean, std, median, n, tuple(flat),
                    float(years.mean()) if len(years) else 0.0, spread,
                    channels.seen_levels(features, visits.values[rows_train]))


def origin(cohort_sha256: str, train_ids: np.ndarray) -> str:
  """Which data statistics are of: the cohort's hash in its manifest, and who of it trains. `train_ids [n]`"""
  return hashlib.sha256('\n'.join([cohort_sha256, *sorted(map(str, train_ids))]).encode()).hexdigest()


def differing(a: Statistics, b: Statistics) -> tuple[str, ...]:
  """Features, and 'age', whose statistics are not the same, of one feature table."""
  near = lambda x, y: np.abs(x - y) <= 1e-4 * b.std  # machines add in different orders
  same = near(a.mean, b.mean) & near(a.std, b.std) & near(a.median, b.median) & (a.n == b.n)
  age = np.allclose((a.age_mean, a.age_std), (b.age_mean, b.age_std), rtol=1e-4)
  return (*(name for name, equal in zip(a.names, same) if not equal), *(() if age else ('age',)))


def _varies(x: np.ndarray) -> bool:
  return len(x) > 0 and float(np.ptp(x)) > 1e-6 * (1 + float(np.abs(x).max()))


def _transform(values: np.ndarray, log: np.ndarray) -> np.ndarray:
  values = values.astype(np.float64)
  return np.where(log, np.log1p(np.maximum(values, 0)), values)


def apply(statistics: Statistics, visits: Visits, cohort: Cohort) -> ExpertBatch:
  """Everything the expert sees, as numpy arrays of all N patients.

  Values are z-scores within ±8, carried forward in time; before a feature's first value they are
  the train median's z-score, and 0 for a feature that no train patient has. Features with
  `encoding: one_hot` have a channel a level instead, see `channels`. `static` holds the z-scored
  age (0 unknown) and sex (1 male, 0 female, 0.5 unknown).

  Raises:
    EagrlError: statistics of another feature table.
  """
  if statistics.names != cohort.features.names:
    raise EagrlError('statistics: fitted on other features than the cohort has; fit them again')
  seen = statistics.n > 0
  observed = ~np.isnan(visits.values)
  z = (_transform(visits.values, statistics.log) - statistics.mean) / statistics.std
  start = np.clip((statistics.median.astype(np.float64) - statistics.mean) / statistics.std, -_CLIP, _CLIP)
  latest = np.maximum.accumulate(np.where(observed, np.arange(z.shape[1])[None, :, None], -1), axis=1)
  filled = np.take_along_axis(np.clip(z, -_CLIP, _CLIP), np.maximum(latest, 0), axis=1)
  filled = np.where(latest >= 0, filled, start) * seen * visits.valid[..., None]
  if any(spec.encoding == 'one_hot' for spec in cohort.features):
    here = (latest >= 0) & visits.valid[..., None]
    raw = np.where(here, np.take_along_axis(visits.values, np.maximum(latest, 0), axis=1), np.nan)
    filled, observed = channels.split(cohort.features, filled, raw, observed, statistics.levels)
  age = np.nan_to_num((cohort.age - statistics.age_mean) / statistics.age_std)
  sex = np.where(cohort.sex < 0, 0.5, cohort.sex)
  return ExpertBatch(
      values=filled.astype(np.float32), observed=observed.astype(np.float32), valid=visits.valid,
      hours=visits.hours, static=np.stack([np.clip(age, -_CLIP, _CLIP), sex], -1).astype(np.float32),
      label=cohort.label.astype(np.float32))


def save(path: str | Path, statistics: Statistics) -> None:
  """Writes the statistics as JSON."""
  row = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in dataclasses.asdict(statistics).items()
         if k not in ('levels', 'made_of') or v}
  Path(path).write_text(json.dumps(row, indent=1, ensure_ascii=False), encoding='utf-8')


def load(path: str | Path) -> Statistics:
  """Reads what `save` wrote, exactly.

  Raises:
    EagrlError: missing, damaged or incomplete file.
  """
  name, fix = Path(path).name, made_again(Path(path).absolute().parent.name)
  try:
    row = json.loads(Path(path).read_text(encoding='utf-8'))
    for field, dtype in _ARRAYS.items():
      row[field] = np.array(row[field], dtype)
    levels = {name: tuple(places) for name, places in row.get('levels', {}).items()}
    found = Statistics(**row | {'names': tuple(row['names']), 'flat': tuple(row['flat']), 'levels': levels})
    sizes = {len(row[field]) for field in _ARRAYS}
  except (OSError, ValueError, TypeError, KeyError, AttributeError):
    raise EagrlError(f'statistics: {name} is missing or damaged; {fix}') from None
  if sizes != {len(found.names)} or not np.all(found.std > 0):
    raise EagrlError(f'statistics: {name} is inconsistent; {fix}')
  return found
