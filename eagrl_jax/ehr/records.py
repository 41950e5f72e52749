"""The canonical cohort: ragged events in flat arrays, one row of statics and one label a patient.

Host side and numpy only. `Visits` is the dense view that the expert and the prompt
renderer share: events binned on a time grid.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools

import numpy as np

from eagrl_jax.ehr.features import FeatureTable

AFTER_END, KNOWN_LATE = 'after the outcome or prediction', 'available only after the outcome or prediction'
# Steps of attrition tables that leave out what comes too late to be used; the leakage audit shows them.
LATE_STEPS = ('after discharge', AFTER_END, KNOWN_LATE, 'after the prediction time', 'after the window',
              'charted in the window, stored after it', 'after 48 hours')
# Of patients who are kept: when `until` is the end of a stay, how short their records are tells the outcome.
ENDS_EARLY = 'data.columns.until lies within the window'

_AT_ONCE = 2**20  # events that are binned in one go: each takes some 100 bytes meanwhile


@dataclasses.dataclass(frozen=True)
class Truth:
  """What only a synthetic cohort knows."""

  salience: np.ndarray  # [N, F] float32, rows sum to 1; 0 where never measured
  risk: np.ndarray  # [N] float32, the true probability of the outcome


@dataclasses.dataclass(frozen=True)
class Rejects:
  """R values that were read and are not used. Patients and features go by name, since row numbers change."""

  subject_id: np.ndarray  # [R] str; private
  hour: np.ndarray  # [R] float32, on the cohort's clock
  feature: np.ndarray  # [R] str
  value: np.ndarray  # [R] float32, in the feature's unit; NaN of a text
  reason: np.ndarray  # [R] str

  def __len__(self) -> int:
    return len(self.value)

  def join(self, other: Rejects | None) -> Rejects:
    """Both, in this order."""
    pairs = [(getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self)] if other else []
    return Rejects(*(np.concatenate(pair) for pair in pairs)) if pairs else self


@dataclasses.dataclass(frozen=True)
class Cohort:
  """N patients. Events are sorted by (patient, hour); `patient` holds row numbers, not ids."""

  name: str
  task: str  # name of what the labels say, see `tasks`
  setting: str  # one clause for the prompt: who these patients are
  features: FeatureTable
  subject_id: np.ndarray  # [N] str; private, never in a prompt or a log
  age: np.ndarray  # [N] float32 years, NaN unknown
  sex: np.ndarray  # [N] int8, 1 male, 0 female, -1 unknown
  label: np.ndarray  # [N] int8
  patient: np.ndarray  # [events] int32
  hour: np.ndarray  # [events] float32, hours since the start: of the record, the stay or the window
  feature: np.ndarray  # [events] int16
  value: np.ndarray  # [events] float32, finite
  attrition: tuple[tuple[str, int, str], ...]  # (step, count, 'patients' | 'rows' | 'values')
  truth: Truth | None = None
  rejects: Rejects | None = None  # of what was read; for people, nothing reads them
  stay_end: np.ndarray | None = None  # [N] float32 hours on the clock of `hour`, NaN unknown; an outcome, no input
  censor: np.ndarray | None = None  # [events] int8: -1 below the value, as '<5', 1 above, 0 exact; None: all are exact

  def __len__(self) -> int:
    return len(self.label)

  def take(self, rows: np.ndarray) -> Cohort:
    """The sub-cohort of these distinct rows, in this order; events end up sorted by (patient, hour)."""
    if len(np.unique(rows)) != len(rows):
      raise ValueError('Cohort.take: a row is repeated; its events cannot belong to two patients')
    new_row = np.full(len(self), -1, np.int32)
    new_row[rows] = np.arange(len(rows), dtype=np.int32)
    patient = new_row[self.patient]
    keep = np.flatnonzero(patient >= 0)
    keep = keep[np.lexsort((self.hour[keep], patient[keep]))]
    truth = self.truth and Truth(self.truth.salience[rows], self.truth.risk[rows])
    stay_end = None if self.stay_end is None else self.stay_end[rows]
    return dataclasses.replace(
        self.pick(keep), subject_id=self.subject_id[rows], age=self.age[rows], sex=self.sex[rows],
        label=self.label[rows], patient=patient[keep], truth=truth, stay_end=stay_end)

  def pick(self, events: np.ndarray) -> Cohort:
    """The same patients with these events alone: a mask, or row numbers in the order wanted."""
    return dataclasses.replace(
        self, patient=self.patient[events], hour=self.hour[events], feature=self.feature[events],
        value=self.value[events], censor=None if self.censor is None else self.censor[events])


@dataclasses.dataclass(frozen=True)
class Visits:
  """Events on a grid; padding is on the right, `values` is NaN where nothing was measured."""

  values: np.ndarray  # [N, T, F] float32, raw units
  hours: np.ndarray  # [N, T] float32, end of the bin (or day) since the start
  valid: np.ndarray  # [N, T] bool
  censor: np.ndarray | None = None  # [N, T, F] int8, as of `Cohort`; 0 where nothing was measured


def hashed_order(subject_id: np.ndarray, salt: str = '') -> np.ndarray:
  """Row numbers sorted by a salted SHA-256 of the id: the same for every order of the input. `[N] -> [N] int64`."""
  digests = [hashlib.sha256(f'{salt}/{i}'.encode()).hexdigest() for i in subject_id]
  return np.argsort(np.array(digests, '<U64'), kind='stable')


def to_visits(cohort: Cohort, bin_hours: float, max_visits: int, aggregate: str = 'mean',
              window_hours: float | None = None) -> Visits:
  """Bins a cohort's events.

  Args:
    bin_hours: width of a visit; empty bins are dropped, so visits may be unevenly spaced.
    max_visits: the latest visits kept; older ones are folded into the first kept row, which
      takes for each feature the latest folded value it does not have itself.
    aggregate: 'mean' or 'last' inside a bin. A mean is below (above) its value where all of its values are.
    window_hours: only events with hour < window_hours are used; None uses all.

  Raises:
    ValueError: unknown `aggregate`, or a width or count that is not positive.
  """
  if aggregate not in ('mean', 'last') or bin_hours <= 0 or max_visits < 1:
    raise ValueError(f"to_visits: aggregate={aggregate!r} must be 'mean' or 'last', bin_hours and max_visits positive")
  n, f = len(cohort), len(cohort.features)
  values = np.full((n, max_visits, f), np.nan, np.float32)
  censor = None if cohort.censor is None else np.zeros(values.shape, np.int8)
  visits = Visits(values, np.zeros((n, max_visits), np.float32), np.zeros((n, max_visits), bool), censor)
  first = np.searchsorted(cohort.patient, np.arange(n + 1))  # event
  starts = np.searchsorted(first, np.arange(0, first[-1], _AT_ONCE))  # patient
  for a, b in itertools.pairwise(np.unique([0, *starts, n])):
    part = Visits(values[a:b], visits.hours[a:b], visits.valid[a:b], None if censor is None else censor[a:b])
    _fill(part, cohort, slice(first[a], first[b]), int(a), bin_hours, aggregate, window_hours)
  return visits


def _fill(visits: Visits, cohort: Cohort, events: slice, start: int, bin_hours: float, aggregate: str,
          window_hours: float | None) -> None:
  """Writes the visits of the patients from row `start` on, whose events these are."""
  n, max_visits, f = visits.values.shape
  hour = cohort.hour[events]
  use = np.ones(len(hour), bool) if window_hours is None else hour < window_hours
  patient, feature = cohort.patient[events][use].astype(np.int64) - start, cohort.feature[events][use].astype(np.int64)
  value, slot = cohort.value[events][use].astype(np.float64), np.floor(hour[use] / bin_hours).astype(np.int64)

  # Rank of each (patient, slot) among the patient's non-empty slots.
  span = int(slot.max(initial=0)) + 1
  keys, visit_of_event = np.unique(patient * span + slot, return_inverse=True)
  owner = keys // span
  first = np.searchsorted(owner, np.arange(n))
  count = np.searchsorted(owner, np.arange(n), side='right') - first
  rank = np.arange(len(keys)) - first[owner]
  row = np.maximum(rank - np.maximum(count[owner] - max_visits, 0), 0)  # older visits fold into row 0

  cell = visit_of_event * f + feature
  order = np.argsort(cell, kind='stable')  # events are time-ordered within a cell
  unique, begin = np.unique(cell[order], return_index=True)
  stop = np.append(begin, len(order))[1:]  # empty when there are no events
  if aggregate == 'mean':
    sums = np.add.reduceat(value[order], begin) if len(begin) else np.zeros(0)
    cells = sums / (stop - begin)
  else:
    cells = value[order][stop - 1]

  visit, feat = unique // f, unique % f
  # `unique` ascends in (patient, slot): a later visit of a folded row overwrites an earlier one.
  visits.values[owner[visit], row[visit], feat] = cells
  visits.hours[owner, row] = (keys % span + 1) * bin_hours
  visits.valid[:] = np.arange(max_visits)[None, :] < np.minimum(count, max_visits)[:, None]
  if cohort.censor is not None and visits.censor is not None:
    signs = cohort.censor[events][use][order]
    sign = shared_sign(signs, begin) if aggregate == 'mean' else signs[stop - 1]
    visits.censor[owner[visit], row[visit], feat] = sign


def shared_sign(censor: np.ndarray, start: np.ndarray) -> np.ndarray:
  """The sign that all values of a group have, else 0. `[n]`, groups begin at `start [G]`. `-> [G]`"""
  if not len(start):
    return np.zeros(0, np.int8)
  low, high = np.minimum.reduceat(censor, start), np.maximum.reduceat(censor, start)
  return np.where(low == high, low, 0).astype(np.int8)
