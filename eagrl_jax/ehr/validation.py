"""What every source shares: numbers out of text, impossible values out of the cohort, and the last check.

No measurement is clipped or guessed: a value is kept, becomes missing, is counted in the attrition table and is kept
among the rejects with the reason, or the load stops with one line that holds no value and no id. Ages above 89 years
are one group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eagrl_jax.ehr import crossfield, sentinels
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.records import Cohort, shared_sign
from eagrl_jax.types import EagrlError

_NUMBER = r'^\s*([<>≤≥]=?)?\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*$'
NO_LEVEL = 'no level of the feature'
IDENTICAL, CONFLICT = 'identical duplicate', 'conflicting values at one time, averaged'
OLDEST = 89  # years; who is older is of one group, given 90
_TWO_SPECIMENS = 0.05  # share of impossible values above which a column may mix specimens
NO_SPECIMEN = f'more than {_TWO_SPECIMENS:.0%} of the feature is impossible, its specimen is not given'
TWO_GROUPS = 'two groups of values'
NO_SPECIMEN_OF_TWO = f'{TWO_GROUPS}, its specimen is not given'
_OTHER_UNIT, _FITS = 0.2, 0.8  # share of impossible values, and of those possible in another unit: it is in that one
_DISTINCT, _OWNERS = 5, 10  # values and patients that a group of values has at least
OUTSIDE = 0.01  # share of rows before the start or after the outcome above which the clocks cannot be trusted
ENOUGH = 20  # values of a feature below which its distribution says nothing


@dataclasses.dataclass(frozen=True)
class Numbers:
  """Text parsed to numbers."""

  value: np.ndarray  # [rows] float64, NaN where empty or text
  censor: np.ndarray  # [rows] int8: -1 where written as '<0.05' or '≤0.05', 1 as '>21' or '≥21', else 0
  censored: int  # entries of either kind, read as the assay limit
  text: int  # entries that are no number


def parse_numbers(texts: pa.Array | Sequence[str | None], decimal: str = '.') -> Numbers:
  """Reads numbers and assay limits; another decimal mark, a word or a trailing mark is text, hence missing."""
  column = texts if isinstance(texts, pa.Array) else pa.array(texts, pa.string())
  if decimal == ',':  # and a point is text: '1.500' may be one thousand five hundred
    column = pc.if_else(pc.match_substring(column, '.'), pa.scalar('text', pa.string()), column)
    column = pc.replace_substring(column, ',', '.')
  number = pc.fill_null(pc.match_substring_regex(column, _NUMBER), False)
  matched = pc.if_else(number, column, pa.scalar(None, pa.string()))
  censored = pc.sum(pc.match_substring_regex(matched, '[<>≤≥]')).as_py() or 0
  bare = pc.utf8_trim_whitespace(pc.replace_substring_regex(matched, r'^\s*[<>≤≥]=?\s*|^\s*\+', ''))
  value = pc.cast(bare, pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
  censor = np.zeros(len(column), np.int8)
  for sign, marks in ((-1, '[<≤]'), (1, '[>≥]')) if censored else ():
    censor[pc.fill_null(pc.match_substring_regex(matched, marks), False).to_numpy(zero_copy_only=False)] = sign
  text = len(column) - column.null_count - pc.sum(number).as_py() if len(column) else 0
  return Numbers(value, censor, censored, text)


def hard_limits(features: FeatureTable) -> tuple[np.ndarray, np.ndarray]:
  """Lowest and highest possible value of every feature, infinite where the spec sets none. `[F], [F] float32`."""
  low = [-np.inf if s.hard_low is None else s.hard_low for s in features]
  high = [np.inf if s.hard_high is None else s.hard_high for s in features]
  return np.array(low, np.float32), np.array(high, np.float32)


def validate(cohort: Cohort, *, at_one_time: bool = True, judge_features: bool = True) -> Cohort:
  """Drops impossible values, merges duplicates, drops patients left without any observation; counts each step.

  Values that a spec lists as sentinels or that look like one, that lie outside a hard range, are no level of a
  feature with levels, contradict another value of the same time or are not finite become missing. Of several values
  of one feature at one time, equal ones count once and different ones are averaged. A feature of which many values
  are impossible, or whose values fall into two groups, is used only with a specimen. Codes for missing that are found
  become sentinels of their feature. All patients have a part in these judgements, whatever split they come into; no
  outcome has.

  Args:
    at_one_time: False where values are averages over a time already, which need not agree with each other, and among
      which codes for missing were looked for before.
    judge_features: False for new patients, whose values are judged one by one: what a model is shown of a patient must
      not depend on who else is in the file.

  Raises:
    EagrlError: a feature's values fit another unit's range better than their own.
  """
  steps: list[tuple[str, int, str]] = []
  cohort = dataclasses.replace(cohort, age=oldest_as_one(cohort.age, steps))
  cohort = _rescale(cohort, steps)
  value, feature = cohort.value, cohort.feature
  reason = np.full(len(value), '', object)
  drop = ~np.isfinite(value)
  reason[drop] = 'not finite'
  _count(steps, 'not finite', drop, 'values')
  for f, spec in enumerate(cohort.features):
    if spec.sentinels:
      missing = (feature == f) & np.isin(value, np.array(spec.sentinels, np.float32)) & ~drop
      _count(steps, f'code for missing: {spec.name}', missing, 'values')
      reason[missing] = 'code for missing'
      drop |= missing

  low, high = hard_limits(cohort.features)
  outside = ((value < low[feature]) | (value > high[feature])) & ~drop
  total = np.bincount(feature[~drop], minlength=len(low))
  for f in np.flatnonzero(np.bincount(feature[outside], minlength=len(low))).tolist():
    spec, mine = cohort.features[f], outside & (feature == f)
    refuse_wrong_unit(spec, int(total[f]), int(mine.sum()), lambda scale, offset: int(np.sum(
        (scale * value[mine] + offset >= low[f]) & (scale * value[mine] + offset <= high[f]))))
    _count(steps, f'outside hard range: {spec.name}', mine, 'values')
    reason[mine] = 'outside hard range'
    for unit, fits in _other_units(spec, value[mine]):
      steps.append((f'of these possible in {unit}: {spec.name}', int(fits.sum()), 'values'))
      reason[np.flatnonzero(mine)[fits]] = f'outside hard range, possible in {unit}'
    if judge_features and mixes_specimens(spec, int(total[f]), int(mine.sum())):
      rest = (feature == f) & (reason == '')
      _count(steps, f'not used until features give its specimen: {spec.name}', rest, 'values')
      reason[rest] = NO_SPECIMEN
  for f, spec in enumerate(cohort.features) if at_one_time else ():  # a mean over a time may lie between levels
    if spec.levels:
      stray = (feature == f) & (reason == '') & ~np.isin(value, np.array([n for n, _ in spec.levels], np.float32))
      _count(steps, f'{NO_LEVEL}: {spec.name}', stray, 'values')
      reason[stray] = NO_LEVEL
  keep = reason == ''
  specs = list(cohort.features)
  often = np.flatnonzero(np.bincount(feature[keep], minlength=len(low)) >= ENOUGH).tolist() if judge_features else ()
  for f in often:
    spec = cohort.features[f]
    if spec.levels:
      continue
    if at_one_time:
      mine = keep & (feature == f)
      codes, odd = sentinels.suspected(*edges(value[mine]), int(mine.sum()))
      for step, found in ((sentinels.CODE, codes), (sentinels.ODD, odd)):
        here = mine & np.isin(value, np.array(found, np.float32))
        _count(steps, f'{step}: {spec.name}', here, 'values')
        reason[here & (step == sentinels.CODE)] = sentinels.CODE
      if codes:  # from now on: what a run reads later may be of one patient, who shows no pattern
        specs[f] = dataclasses.replace(spec, sentinels=(*spec.sentinels, *codes))
    mine = (reason == '') & (feature == f)
    if not spec.specimen and two_groups(value[mine], cohort.patient[mine]):
      _count(steps, f'{TWO_GROUPS}, not used until features give its specimen: {spec.name}', mine, 'values')
      reason[mine] = NO_SPECIMEN_OF_TWO
  keep = reason == ''

  cohort = crossfield.put_aside(cohort, reason).pick(keep)
  cohort = _merge_duplicates(cohort, steps)
  if at_one_time:
    cohort, contradictions = crossfield.apply(cohort)
    steps += contradictions
  seen = np.bincount(cohort.patient, minlength=len(cohort)) > 0
  _count(steps, 'without any observation', ~seen, 'patients')
  if not seen.all():
    cohort = cohort.take(np.flatnonzero(seen))
  steps += [('kept', len(cohort), 'patients'), ('kept', len(cohort.value), 'values')]
  censor = cohort.censor if cohort.censor is not None and cohort.censor.any() else None
  table = cohort.features if specs == list(cohort.features) else FeatureTable(tuple(specs))
  return dataclasses.replace(cohort, features=table, attrition=(*cohort.attrition, *steps), censor=censor)


def oldest_as_one(age: np.ndarray, steps: list[tuple[str, int, str]]) -> np.ndarray:
  """Ages with those above `OLDEST` years as one group, counted; above 120 `check` refuses them. `[N] float32`"""
  older = (age > OLDEST) & (age <= 120) & (age != OLDEST + 1)
  _count(steps, f'older than {OLDEST} years, given {OLDEST + 1}', older, 'patients')
  return np.where(older, np.float32(OLDEST + 1), age)


def _count(steps: list[tuple[str, int, str]], step: str, mask: np.ndarray, unit: str) -> None:
  if mask.any():
    steps.append((step, int(mask.sum()), unit))


def possible(spec: FeatureSpec, value: np.ndarray) -> np.ndarray:
  """Whether `validate` keeps a value of this feature, judged by itself. `[rows] -> [rows] bool`"""
  value = value.astype(np.float32)
  low, high = (limit[0] for limit in hard_limits(FeatureTable((spec,))))
  scaled = value.copy()
  for _, _, scale, offset, mine in _to_rescale(spec, value):
    scaled[mine] = scale * value[mine] + offset
  keep = np.isfinite(scaled) & (scaled >= low) & (scaled <= high)
  keep &= ~np.isin(scaled, np.array(spec.sentinels, np.float32))
  return keep & np.isin(scaled, np.array([n for n, _ in spec.levels], np.float32)) if spec.levels else keep


def _to_rescale(spec: FeatureSpec, value: np.ndarray) -> Iterator[tuple[float, float, float, float, np.ndarray]]:
  """Each rule of `FeatureSpec.rescale` with the values that it converts: the first that holds decides."""
  left = np.ones(len(value), bool)
  for low, high, scale, offset in spec.rescale:
    mine = left & (value >= np.float32(low)) & (value <= np.float32(high))
    left &= ~mine
    yield low, high, scale, offset, mine


def _rescale(cohort: Cohort, steps: list[tuple[str, int, str]]) -> Cohort:
  value, censor = cohort.value.copy(), None if cohort.censor is None else cohort.censor.copy()
  for f, spec in enumerate(cohort.features):
    rows = np.flatnonzero(cohort.feature == f) if spec.rescale else np.zeros(0, int)
    for low, high, scale, offset, of_rows in _to_rescale(spec, cohort.value[rows]):
      mine = rows[of_rows]
      _count(steps, f'converted from {low:g} to {high:g}: {spec.name}', of_rows, 'values')
      value[mine] = scale * value[mine] + offset
      if censor is not None and scale < 0:
        censor[mine] *= -1
  return dataclasses.replace(cohort, value=value, censor=censor)


def _other_units(spec: FeatureSpec, outside: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
  """Accepted units in which some of these impossible values would be possible, and which."""
  low, high = (limit[0] for limit in hard_limits(FeatureTable((spec,))))
  for unit, scale, offset in spec.accepted_units:
    fits = (scale * outside + offset >= low) & (scale * outside + offset <= high)
    if unit != spec.unit and fits.any():
      yield unit, fits


def refuse_wrong_unit(spec: FeatureSpec, total: int, wrong: int, fits: Callable[[float, float], int]) -> None:
  """Refuses a feature whose values are most likely another unit's.

  Args:
    total: its finite values that are no code for missing. wrong: those outside the hard range.
    fits: (scale, offset) -> how many of the wrong ones lie in the hard range when taken so.
  """
  if total < ENOUGH:
    return
  for unit, scale, offset in spec.accepted_units if wrong > _OTHER_UNIT * total else ():
    if unit != spec.unit and fits(scale, offset) > _FITS * wrong:
      raise EagrlError(f'features: {wrong} of {total} values of {spec.name!r} are impossible in {spec.unit!r} '
                       f'but possible in {unit!r}; give the unit of each value')
  if wrong > 0.5 * total:
    raise EagrlError(f'features: {wrong} of {total} values of {spec.name!r} lie outside its hard range; '
                     'check its unit and specimen')


def mixes_specimens(spec: FeatureSpec, total: int, wrong: int) -> bool:
  """Whether so many of a feature's values are impossible that its column may hold two specimens."""
  return total >= ENOUGH and wrong > _TWO_SPECIMENS * total and not spec.specimen


def two_groups(value: np.ndarray, patient: np.ndarray) -> bool:
  """Whether values fall into two groups with nothing between: two specimens, or two units that nobody declared.

  Each group holds its share, several distinct values and those of several patients, who may each have a level of
  their own, and the gap is wider than the 5-95 % range of both groups, on the log scale where all values are
  positive. An indicator, or an assay's limit beside values, is not two groups. `[n], [n]`
  """
  order = np.argsort(value, kind='stable')
  x, patient = value[order].astype(np.float64), patient[order]
  x = np.log(x) if len(x) and x[0] > 0 else x
  if len(x) < 2:
    return False
  cut = int(np.argmax(np.diff(x))) + 1
  parts = x[:cut], x[cut:]
  width = max(float(np.subtract(*np.quantile(part, (0.95, 0.05)))) for part in parts)
  return (min(map(len, parts)) >= _TWO_SPECIMENS * len(x) and x[cut] - x[cut - 1] > width
          and min(len(np.unique(part)) for part in parts) >= _DISTINCT
          and min(len(np.unique(part)) for part in (patient[:cut], patient[cut:])) >= _OWNERS)


def edges(value: np.ndarray) -> tuple[list[sentinels.Edge], list[sentinels.Edge]]:
  """The smallest and the largest distinct values with their counts, as `sentinels.suspected` wants them."""
  distinct, count = np.unique(value, return_counts=True)
  pairs = list(zip(distinct.astype(float).tolist(), count.tolist()))
  return pairs[:sentinels.EDGES], pairs[::-1][:sentinels.EDGES]


def _merge_duplicates(cohort: Cohort, steps: list[tuple[str, int, str]]) -> Cohort:
  censor = np.zeros(len(cohort.value), np.int8) if cohort.censor is None else cohort.censor
  order = np.lexsort((censor, cohort.value, cohort.feature, cohort.hour, cohort.patient))
  patient, hour = cohort.patient[order], cohort.hour[order]
  feature, value, censor = cohort.feature[order], cohort.value[order], censor[order]
  same_cell = (np.diff(patient) == 0) & (np.diff(hour) == 0) & (np.diff(feature) == 0)
  repeated = np.append(False, same_cell & (np.diff(value) == 0) & (np.diff(censor) == 0))[:len(value)]
  _count(steps, IDENTICAL, repeated, 'values')

  start = np.flatnonzero(np.append(True, ~same_cell)[:len(value)])
  distinct = np.add.reduceat((~repeated).astype(np.int64), start) if len(start) else np.zeros(0, np.int64)
  _count(steps, CONFLICT, distinct > 1, 'values')
  sums = np.add.reduceat(np.where(repeated, 0.0, value.astype(np.float64)), start) if len(start) else distinct
  mean = np.where(distinct == 1, value[start], sums / np.maximum(distinct, 1)).astype(np.float32)
  return dataclasses.replace(cohort, patient=patient[start], hour=hour[start], feature=feature[start], value=mean,
                             censor=None if cohort.censor is None else shared_sign(censor, start))


def check(cohort: Cohort, labelled: bool = True) -> None:
  """Refuses a cohort that no stage can use.

  Args:
    labelled: False for new patients, whose labels say nothing.

  Raises:
    EagrlError: no patients or events, one class only, repeated ids, events out of order or out of
      range, NaN, impossible age, sex or label, arrays of unequal length.
  """
  n, f, events = len(cohort), len(cohort.features), len(cohort.value)
  if not n or not events:
    raise EagrlError('data: the cohort is empty; check the path and the columns')
  sizes = {'subject_id': n, 'age': n, 'sex': n, 'patient': events, 'hour': events, 'feature': events}
  sizes |= {} if cohort.censor is None else {'censor': events}
  for field, size in sizes.items():
    if len(getattr(cohort, field)) != size:
      raise EagrlError(f'data.{field}: has {len(getattr(cohort, field))} entries and needs {size}')
  if cohort.stay_end is not None and len(cohort.stay_end) != n:
    raise EagrlError(f'data.stay_end: has {len(cohort.stay_end)} entries and needs {n}')
  repeats = n - len(np.unique(cohort.subject_id))
  age = cohort.age[~np.isnan(cohort.age)]
  step = np.diff(cohort.patient)
  end = np.zeros(0) if cohort.stay_end is None else cohort.stay_end
  censor = np.zeros(0) if cohort.censor is None else cohort.censor
  problems = (
      (repeats, 'subject_id', 'ids are repeated; give each patient one row'),
      (int(np.sum(~np.isin(cohort.label, (0, 1)))), 'label', 'labels are neither 0 nor 1; recode them'),
      (int(np.sum(~np.isin(cohort.sex, (-1, 0, 1)))), 'sex', 'codes are not 1 (male), 0 (female) or -1; recode them'),
      (int(np.sum((age < 0) | (age > 120))), 'age', 'ages are outside 0 to 120 years; compute them again'),
      (int(np.sum((end < 0) | np.isinf(end))), 'stay_end', 'stays end before they begin; count from the first record'),
      (int(np.sum(~np.isfinite(cohort.value))), 'value', 'values are NaN or infinite; leave them out'),
      (int(np.sum(~np.isin(censor, (-1, 0, 1)))), 'censor', 'signs are not -1 (below), 0 (exact) or 1; recode them'),
      (int(np.sum(~(cohort.hour >= 0) | np.isinf(cohort.hour))), 'hour', 'times are negative or NaN; count from 0'),
      (int(np.sum((cohort.patient < 0) | (cohort.patient >= n))), 'patient', 'row numbers do not exist'),
      (int(np.sum((cohort.feature < 0) | (cohort.feature >= f))), 'feature', 'ids are not in the feature table'),
      (int(np.sum((step < 0) | ((step == 0) & (np.diff(cohort.hour) < 0)))), 'hour',
       'events are out of order; sort them by patient and time'),
  )
  for count, field, problem in problems:
    if count:
      raise EagrlError(f'data.{field}: {count} {problem}')
  if len(np.unique(cohort.patient)) != n:
    raise EagrlError(f'data: {n - len(np.unique(cohort.patient))} patients have no event; leave them out')
  positives = int(np.sum(cohort.label == 1))
  if labelled and positives in (0, n):
    raise EagrlError(f'data.label: all {n} patients are {"positive" if positives else "negative"}; '
                     'the task needs both outcomes, check the outcome column')
