"""Any long CSV, `patient,time,feature,value[,unit]`, with an outcomes CSV, `patient,label[,age,sex]`.

Both may be gzipped. The events are read in blocks, so that only numbers stay in memory. Nothing is
guessed: not a unit, not a sex code, not which of two ids or outcomes is the right one.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eagrl_jax.ehr import store, units, validation
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable, canonical, plain_unit
from eagrl_jax.ehr.records import Cohort, Rejects, hashed_order
from eagrl_jax.ehr.sources.csv_text import Reading, blocks, hours
from eagrl_jax.types import EagrlError

SUPERSEDED = 'superseded by a later value of the same time'
SEX = {'m': 1, 'male': 1, 'f': 0, 'female': 0}
_LABEL = {'1': 1, '1.0': 1, 'true': 1, '0': 0, '0.0': 0, 'false': 0}


@dataclasses.dataclass(frozen=True)
class Columns:
  """Header names of the two files; `unit`, `available`, `until`, `age` and `sex` may be absent.

  `available` is when a value could be known, `until` the time after which nothing of a patient may be used, as that of
  death, discharge or prediction; both on the clock of `time`.
  """

  patient: str = 'patient'
  time: str = 'time'
  feature: str = 'feature'
  value: str = 'value'
  unit: str = 'unit'
  available: str = 'available'
  outcome_patient: str = 'patient'
  label: str = 'label'
  age: str = 'age'
  sex: str = 'sex'
  until: str = 'until'


@dataclasses.dataclass
class Events:
  """Rows of the events file as numbers; names are kept once each."""

  patients: dict[str, int]
  features: dict[str, int]
  units: dict[str, int]
  words: dict[str, int]  # values that are no numbers
  kinds: set[str]  # how times are written: one member
  patient: np.ndarray  # int32
  feature: np.ndarray  # int32
  unit: np.ndarray  # int32, -1 without unit
  word: np.ndarray  # int32, -1 where the value is a number or empty
  hour: np.ndarray  # float64, on the file's own clock
  available: np.ndarray  # float64, NaN unknown
  value: np.ndarray  # float64
  censor: np.ndarray  # int8, as of `Cohort`


@np.errstate(over='ignore')  # what float32 cannot hold becomes infinite, and is counted as not finite
def load(path: str | Path, outcomes: str | Path, *, columns: Columns = Columns(), features: str | Path | None = None,
         name: str = 'csv', task: str = 'mortality', setting: str = 'patients in hospital',
         sex_codes: Mapping[str, int] | None = None, reading: Reading = Reading()) -> Cohort:
  """Reads events and outcomes.

  Args:
    path: events; time is in hours (a number) or ISO 8601, all of one kind and one time zone.
    outcomes: one row a patient; label 0/1 or true/false, sex m/f/male/female or `sex_codes`.
    columns: header names.
    features: YAML or JSON list of FeatureSpec fields. Without it every feature name becomes a
      feature without ranges, in the one unit that the file gives for it.
    name, task, setting: see Cohort.
    sex_codes: file's code -> 1 male, 0 female, -1 unknown.
    reading: of both files.

  Returns:
    A validated cohort; hours count from each patient's first row.

  Raises:
    EagrlError: anything that would need a guess, see the module's docstring.
  """
  count: collections.Counter[str] = collections.Counter()
  ids, label, age, sex, until = _read_outcomes(Path(outcomes), columns, sex_codes or SEX, reading, count)
  events = read_events(Path(path), columns, reading, count)
  refuse_two_spellings([*ids, *(p for p in events.patients if p not in ids)], columns.patient)
  table, feature_of = _features(events, features, columns)
  value, censor = convert(events, table, feature_of, count)

  start = np.full(len(events.patients), np.inf)
  np.minimum.at(start, events.patient, events.hour)
  known = [p for p in ids if p in events.patients]
  row_of = np.full(len(events.patients), -1, np.int32)
  row_of[[events.patients[p] for p in known]] = np.arange(len(known))
  if not known:
    raise EagrlError(f'data.outcomes: no id in {columns.outcome_patient!r} occurs in the events; check both id columns')
  pick = [ids[p] for p in known]
  mine = row_of[events.patient] >= 0
  end = np.where(mine, until.of(events.kinds, columns.until)[pick][row_of[events.patient]], np.nan)
  late, unknown_yet = events.hour > end, (events.available > end) & ~(events.hour > end)
  if late.sum() > validation.OUTSIDE * mine.sum():
    raise EagrlError(f'data.{columns.until}: {late.sum()} of {mine.sum()} rows lie after it; check that both files use '
                     'one clock, or leave those rows out of the events')
  number = mine & ~np.isnan(value)
  usable = number & ~late & ~unknown_yet
  replaced = superseded(events, table, feature_of, value, usable)
  keep = usable & ~replaced
  steps = [('read', len(events.patients), 'patients'), ('read', count['rows'], 'rows'),
           ('without patient, time or feature', count['incomplete'], 'rows'),
           ('without value', count['empty'], 'values'), ('text', count['text'], 'values'),
           ('assay limit written as < or >', count['censored'], 'values'),
           *((step, n, 'values') for step, n in (
               ('level of an ordinal feature written as a word', count['worded']),
               ('after the outcome or prediction', int((late & mine).sum())),
               ('available only after the outcome or prediction', int((unknown_yet & mine).sum())),
               (SUPERSEDED, int(replaced.sum()))) if n),
           ('without outcome', len(events.patients) - len(known), 'patients'),
           ('outcome left empty', count['unlabelled'], 'patients'),
           ('outcome without a row', len(ids) - len(known), 'patients')]
  cohort = Cohort(
      name=name, task=task, setting=setting, features=table, subject_id=np.array(known, str),
      age=age[pick].astype(np.float32), sex=sex[pick], label=label[pick], patient=row_of[events.patient][keep],
      hour=(events.hour - start[events.patient])[keep].astype(np.float32),
      feature=feature_of[events.feature][keep].astype(np.int16), value=value[keep].astype(np.float32),
      attrition=tuple(steps), censor=censor[keep])
  cohort = dataclasses.replace(cohort, rejects=_rejects(
      events, table, feature_of, start, value,
      {'text': mine & (events.word >= 0) & np.isnan(value), 'after the outcome or prediction': late & number,
       'available only after the outcome or prediction': unknown_yet & number, SUPERSEDED: replaced}))
  cohort = validation.validate(cohort.take(hashed_order(cohort.subject_id, name)))
  validation.check(cohort)
  return cohort


def _rejects(events: Events, table: FeatureTable, feature_of: np.ndarray, start: np.ndarray, value: np.ndarray,
             reasons: dict[str, np.ndarray]) -> Rejects:
  ids, names = np.array(list(events.patients), object), np.array(table.names, object)
  rows = np.concatenate([np.flatnonzero(mask) for mask in reasons.values()])
  reason = np.concatenate([np.full(int(mask.sum()), name, object) for name, mask in reasons.items()])
  patient = events.patient[rows]
  return Rejects(ids[patient], (events.hour[rows] - start[patient]).astype(np.float32),
                 names[feature_of[events.feature[rows]]], value[rows].astype(np.float32), reason)


def parse_sex_codes(text: str) -> dict[str, int] | None:
  """`'1=m,2=f,9=unknown'` -> code of every entry; None where the text is empty.

  Raises:
    EagrlError: not such pairs.
  """
  words = SEX | {'unknown': -1}
  pairs = [pair.partition('=') for pair in text.split(',') if pair.strip()]
  codes = {code.strip(): words.get(word.strip().lower(), -2) for code, _, word in pairs}
  if -2 in codes.values() or '' in codes:
    raise EagrlError(f'data.sex_codes={text!r}: write code=m, code=f or code=unknown, separated by commas')
  return codes or None


def read_events(path: Path, columns: Columns, reading: Reading, count: collections.Counter[str]) -> Events:
  """The events file; rows without patient, time or feature are counted and left out."""
  codes: dict[str, dict[str, int]] = {'patient': {}, 'feature': {}, 'unit': {}, 'word': {}}
  parts: dict[str, list[np.ndarray]] = collections.defaultdict(list)
  kinds: set[str] = set()
  wanted = {columns.patient: True, columns.time: True, columns.feature: True, columns.value: True,
            columns.unit: columns.unit != Columns.unit, columns.available: columns.available != Columns.available}
  for block in blocks(path, 'data.path', wanted, reading, columns.feature):
    time, who, what, raw = (block[c] for c in (columns.time, columns.patient, columns.feature, columns.value))
    complete = pc.and_(pc.and_(pc.is_valid(time), pc.is_valid(who)), pc.is_valid(what))
    complete = complete.to_numpy(zero_copy_only=False)
    count['rows'] += len(complete)
    count['incomplete'] += int((~complete).sum())
    select = pa.array(complete)
    entries = raw.filter(select)
    numbers = validation.parse_numbers(entries, reading.decimal)
    count['text'] += numbers.text
    count['censored'] += numbers.censored
    count['empty'] += entries.null_count
    parts['value'].append(numbers.value)
    parts['censor'].append(numbers.censor)
    parts['hour'].append(hours(time.filter(select), kinds, columns.time, reading.decimal))
    known = block.get(columns.available)
    parts['available'].append(np.full(len(entries), np.nan) if known is None else
                              hours(known.filter(select), kinds, columns.available, reading.decimal))
    for field, column in (('patient', who), ('feature', what), ('unit', block.get(columns.unit))):
      filled = pa.nulls(len(entries), pa.string()) if column is None else column.filter(select)
      parts[field].append(_encode(filled, codes[field]))
    words = pc.if_else(pa.array(np.isnan(numbers.value)), entries, pa.scalar(None, pa.string()))
    parts['word'].append(_encode(words, codes['word']))
  if not sum(map(len, parts['value'])):
    raise EagrlError(f'data.path: {path.name} holds no row with patient, time and feature')
  joined = {field: np.concatenate(arrays) for field, arrays in parts.items()}
  return Events(codes['patient'], codes['feature'], codes['unit'], codes['word'], kinds, **joined)


def _encode(column: pa.Array, codes: dict[str, int]) -> np.ndarray:
  """Number of every entry in `codes`, which grows; -1 where empty."""
  encoded = column.dictionary_encode()
  local = np.array([codes.setdefault(x, len(codes)) for x in encoded.dictionary.to_pylist()] + [-1], np.int32)
  return local[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]


@dataclasses.dataclass(frozen=True)
class _Until:
  """The outcomes file's column of that name, before it is known how the events write their times."""

  text: list[str | None]  # [rows]
  decimal: str

  def of(self, kinds: set[str], field: str) -> np.ndarray:
    """Hours on the events' clock, NaN unknown. `[rows]`"""
    return hours(pa.array(self.text, pa.string()), set(kinds), field, self.decimal)


def _read_outcomes(path: Path, columns: Columns, sex_codes: Mapping[str, int], reading: Reading,
                   count: collections.Counter[str]
                   ) -> tuple[dict[str, int], np.ndarray, np.ndarray, np.ndarray, _Until]:
  """Ids with a label -> row, and label, age, sex and end of every row."""
  wanted = {columns.outcome_patient: True, columns.label: True, columns.age: columns.age != Columns.age,
            columns.sex: columns.sex != Columns.sex, columns.until: columns.until != Columns.until}
  rows: dict[str, list[Any]] = collections.defaultdict(list)
  for block in blocks(path, 'data.outcomes', wanted, reading):
    for field, column in block.items():
      rows[field] += column.to_pylist()
  who, raw = rows[columns.outcome_patient], rows[columns.label]
  if not who:
    raise EagrlError(f'data.outcomes: {path.name} holds no rows')
  label = np.array([-1 if x is None else _LABEL.get(x.lower(), -2) for x in raw], np.int8)
  if (label == -2).any():
    raise EagrlError(f'data.outcomes: {(label == -2).sum()} entries of {columns.label!r} are not 0, 1, true or false')
  seen: dict[str, int] = {}
  for patient, y in zip(who, label.tolist()):
    if patient is None:
      raise EagrlError(f'data.outcomes: a row has no {columns.outcome_patient!r}; fill it in or remove the row')
    if seen.setdefault(patient, y) != y:
      raise EagrlError('data.outcomes: a patient has two different outcomes; keep the right one')
  if len(seen) != len(who):
    raise EagrlError(f'data.outcomes: {len(who) - len(seen)} patients are listed twice; keep one row each')
  count['unlabelled'] = int((label == -1).sum())

  ages = validation.parse_numbers(rows.get(columns.age) or [None] * len(who), reading.decimal)
  if ages.text or ages.censored:
    raise EagrlError(f'data.outcomes: {ages.text + ages.censored} entries of {columns.age!r} are not plain numbers; '
                     'give years')
  codes = {str(k).lower(): v for k, v in sex_codes.items()}
  sex = np.array([-1 if x is None else codes.get(x.lower(), -2) for x in rows.get(columns.sex) or [None] * len(who)],
                 np.int8)
  if (sex == -2).any():
    raise EagrlError(f'data.outcomes: {(sex == -2).sum()} entries of {columns.sex!r} have an unknown code; '
                     'give --config.data.sex_codes=, such as 1=m,2=f')
  until = _Until(rows.get(columns.until) or [None] * len(who), reading.decimal)
  return {p: i for i, p in enumerate(who) if label[i] >= 0}, label, ages.value, sex, until


def refuse_two_spellings(ids: list[str], field: str) -> None:
  """Ids that differ in case, leading zeros or a spreadsheet's '.0' are one patient under two ids."""
  same = collections.Counter(re.sub(r'^0+(?=.)|\.0+$', '', patient.lower()) for patient in ids)
  twice = sum(n > 1 for n in same.values())
  if twice:
    raise EagrlError(f'data.{field}: {twice} patients have two ids that differ only in case, leading zeros or ".0"; '
                     'write each id in one way')


def _may_be_shown(entry: str, events: Events) -> bool:
  """Whether an entry of the feature or unit column can stand in a message: it is no id, number or date."""
  return entry not in events.patients and not re.match(r'^[\W\d_]*$|^\d{4}-\d\d', entry)


def _features(events: Events, path: str | Path | None, columns: Columns) -> tuple[FeatureTable, np.ndarray]:
  """The table, and the feature id of every name in the file."""
  names = list(events.features)
  if path is not None:
    table = store.read_features(path)
    unknown = [name for name in names if table.find(name) is None]
    alike = sum(table.near(name, 0.6) is not None for name in unknown)
    # Hardly a column of features, when most names are unknown and unlike any: its entries may be anything.
    stranger = 2 * len(unknown) > len(names) and 2 * alike < len(unknown)
    if stranger or not all(_may_be_shown(name, events) for name in unknown):
      raise EagrlError(f'data.path: {len(unknown)} of {len(names)} names in the column {columns.feature!r} are not in '
                       'data.features; check --config.data.columns.feature and the features file')
    return table, np.array([table.require(name, 'data.path') for name in names], np.int32)
  spellings: dict[str, list[str]] = collections.defaultdict(list)
  for name in sorted(names):
    spellings[canonical(name)].append(name)
  specs = []
  for same in spellings.values():
    mine = np.isin(events.feature, [events.features[name] for name in same])
    given = [u for u, code in events.units.items() if (events.unit[mine] == code).any()]
    if len({plain_unit(u) for u in given}) > 1:
      name = repr(same[0]) if _may_be_shown(same[0], events) else 'an entry that is also an id or a number'
      raise EagrlError(f'features: {name} occurs in {len(given)} units; check --config.data.columns.feature, or give a '
                       'features file with accepted_units')
    shown = ' '.join(re.sub(r'[,;<>\n]+', ' ', same[0]).split())
    specs.append(FeatureSpec(shown, given[0] if given else '', decimals=_decimals(events.value[mine]),
                             aliases=tuple(s for s in same if s != shown)))
  table = FeatureTable(tuple(specs))
  return table, np.array([table.require(name, 'data.path') for name in names], np.int32)


def superseded(events: Events, table: FeatureTable, feature_of: np.ndarray, value: np.ndarray,
               usable: np.ndarray) -> np.ndarray:
  """Values of features with `repeats: last` that another one of the same patient and time takes the place of.

  A value that is impossible by itself takes nothing's place: it was sent for no correction.

  Args:
    value: [rows] in the specs' units. usable: [rows] bool, those that count.

  Returns:
    `[rows]` bool. Equal values are left to be counted as duplicates.
  """
  out = np.zeros(len(value), bool)
  chosen = np.array([spec.repeats == 'last' for spec in table], bool)
  usable = usable & chosen[feature_of[events.feature]]
  for f in np.flatnonzero(chosen):
    mine = np.flatnonzero(usable & (feature_of[events.feature] == f))
    usable[mine] = validation.possible(table[int(f)], value[mine])
  rows = np.flatnonzero(usable)
  if len(rows):
    since = np.nan_to_num(events.available[rows], nan=-np.inf)
    order = rows[np.lexsort((rows, since, feature_of[events.feature[rows]], events.hour[rows], events.patient[rows]))]
    cell = np.stack([events.patient[order], events.hour[order], feature_of[events.feature[order]]])
    last = np.append(np.any(np.diff(cell) != 0, axis=0), True)
    final = order[np.flatnonzero(last)[np.cumsum(np.append(0, last[:-1]))]]  # the last row of each row's cell
    out[order] = (value[order] != value[final]) | (events.censor[order] != events.censor[final])
  return out


def _decimals(value: np.ndarray) -> int:
  value = value[np.isfinite(value)]
  exact = (d for d in range(3) if not len(value) or np.mean(np.abs(value - np.round(value, d)) < 1e-9) >= 0.95)
  return next(exact, 3)


def convert(events: Events, table: FeatureTable, feature_of: np.ndarray,
            count: collections.Counter[str]) -> tuple[np.ndarray, np.ndarray]:
  """Values in the specs' units; levels that are written as words become numbers.

  A value without a unit is taken to be in its spec's.

  Returns:
    Values `[rows] float64`, NaN missing, and on which side of them what was measured lies `[rows] int8`, see `Cohort`.
  """
  value, censor, feature = events.value.copy(), events.censor.copy(), feature_of[events.feature]
  for f, spec in enumerate(table):
    level = {canonical(word): number for number, word in spec.levels}
    for word, code in events.words.items() if level else ():
      rows = (events.word == code) & (feature == f)
      number = level.get(canonical(word), level.get(canonical(re.sub(r'^[0-9]+', '', word))))
      if number is not None and rows.any():
        value[rows] = number
        count['worded'] += int(rows.sum())
        count['text'] -= int(rows.sum())
  for unit, code in events.units.items():
    rows = np.flatnonzero(events.unit == code)
    for f in np.unique(feature[rows]):
      spec, mine = table[int(f)], rows[feature[rows] == f]
      if plain_unit(unit) == plain_unit(spec.unit):
        continue
      if (known := units.into(spec, unit)) is None:
        what = repr(unit) if _may_be_shown(unit, events) else 'an entry that is no unit'
        raise EagrlError(f'data.path: {spec.name!r} occurs in {what}, which its spec in {spec.unit!r} does not '
                         'accept; add it to accepted_units, or check --config.data.columns.unit')
      scale, offset = known
      value[mine] = scale * value[mine] + offset
      if scale < 0:
        censor[mine] *= -1
  return value, censor
