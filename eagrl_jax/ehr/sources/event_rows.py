"""Rows of an events file, `patient,time,feature,value[,unit]`, as numbers in the units of feature specs.

The file is read in blocks, so that only numbers stay in memory. Nothing is guessed: not a unit, not which of two
spellings of an id is the right one.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from eagrl_jax.ehr import store, units, validation
from eagrl_jax.ehr.features import MOST_DECIMALS, FeatureSpec, FeatureTable, canonical, is_word, plain_unit
from eagrl_jax.ehr.sources.csv_text import Reading, blocks, hours
from eagrl_jax.types import EagrlError

SUPERSEDED = 'superseded by a later value of the same time'
NO_LEVEL = 'a word that is no level of the feature'
MOST_FEATURES = np.iinfo(np.int16).max  # that a cohort can number
_SERIALS = 20_000, 60_000  # days since 1900 of the years 1954 to 2064; as hours years after hour 0
_STAY = 60  # days of a record, which are few, would be so many hours
_YEARS = 30  # between neighbouring rows of a patient; 1900-01-01 and 1970-01-01 often stand where no date is known


@dataclasses.dataclass(frozen=True)
class Columns:
  """Header names of the two files; `unit`, `available`, `until`, `age` and `sex` may be absent.

  `available` is when a value could be known, `until` the time after which nothing of a patient may be used, as that of
  death, discharge or prediction; both on the clock of `time`. Where it is the end of a stay, patients whose stay ended
  within `data.window_hours` belong in no outcomes file: their outcome was known when the prediction is made.
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

  def field(self, name: str) -> str:
    """The config field of a column as errors name it, with the header where that differs."""
    header = getattr(self, name)
    return f'data.columns.{name}' + (f' ({header!r})' if header != name else '')


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


def read(path: Path, columns: Columns, reading: Reading, count: collections.Counter[str]) -> Events:
  """The events file; rows without patient, time or feature are counted and left out."""
  codes: dict[str, dict[str, int]] = {'patient': {}, 'feature': {}, 'unit': {}, 'word': {}}
  parts: dict[str, list[np.ndarray]] = collections.defaultdict(list)
  kinds: set[str] = set()
  wanted = {columns.patient: True, columns.time: True, columns.feature: True, columns.value: True,
            columns.unit: columns.unit != Columns.unit, columns.available: columns.available != Columns.available}
  for block in blocks(path, 'data.path', wanted, reading, columns.feature, (columns.time, columns.available)):
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
    parts['hour'].append(hours(time.filter(select), kinds, columns.field('time'), reading))
    known = block.get(columns.available)
    parts['available'].append(np.full(len(entries), np.nan) if known is None else
                              hours(known.filter(select), kinds, columns.field('available'), reading))
    for field, column in (('patient', who), ('feature', what), ('unit', block.get(columns.unit))):
      filled = pa.nulls(len(entries), pa.string()) if column is None else column.filter(select)
      parts[field].append(_encode(filled, codes[field]))
    words = pc.if_else(pa.array(np.isnan(numbers.value)), entries, pa.scalar(None, pa.string()))
    parts['word'].append(_encode(words, codes['word']))
  if not sum(map(len, parts['value'])):
    raise EagrlError(f'data.path: {path.name} holds no row with patient, time and feature')
  joined = {field: np.concatenate(arrays) for field, arrays in parts.items()}
  if reading.time_unit == 'hours':
    _refuse_serials(joined['patient'], joined['hour'], kinds, columns.field('time'))
  _refuse_placeholders(joined['patient'], joined['hour'], columns.field('time'))
  return Events(codes['patient'], codes['feature'], codes['unit'], codes['word'], kinds, **joined)


def _spans(patient: np.ndarray, hour: np.ndarray) -> np.ndarray:
  """Hours between the first and the last row of each patient. `[patients]`"""
  first, last = np.full((2, patient.max() + 1), [[np.inf], [-np.inf]])
  np.minimum.at(first, patient, hour)
  np.maximum.at(last, patient, hour)
  return last - first


def _refuse_serials(patient: np.ndarray, hour: np.ndarray, kinds: set[str], field: str) -> None:
  """Of days since 1900, as a spreadsheet saves dates, each would be an hour, and nothing would show it."""
  if kinds != {'hours'} or hour.min() < _SERIALS[0] or hour.max() > _SERIALS[1]:
    return
  if np.median(_spans(patient, hour)) < _STAY:
    raise EagrlError(f'{field}: all times lie between {_SERIALS[0]} and {_SERIALS[1]} hours, a patient\'s within '
                     f'{_STAY}, as the days do by which a spreadsheet writes dates; set --config.data.time_unit=days, '
                     'format the column as a date there, or let hours begin near 0')


def _refuse_placeholders(patient: np.ndarray, hour: np.ndarray, field: str) -> None:
  """Of a date that stands for none all hours would count, and a window after it would hold nothing."""
  rows = np.flatnonzero((_spans(patient, hour) > _YEARS * 8766)[patient])
  rows = rows[np.lexsort((hour[rows], patient[rows]))]
  gap = (np.diff(hour[rows]) > _YEARS * 8766) & (np.diff(patient[rows]) == 0)
  if gap.any():
    raise EagrlError(f'{field}: of {len(np.unique(patient[rows[1:]][gap]))} patients two rows lie more than {_YEARS} '
                     'years apart with none between; leave a time that is not known empty, or remove those rows')


def _encode(column: pa.Array, codes: dict[str, int]) -> np.ndarray:
  """Number of every entry in `codes`, which grows; -1 where empty."""
  encoded = column.dictionary_encode()
  local = np.array([codes.setdefault(x, len(codes)) for x in encoded.dictionary.to_pylist()] + [-1], np.int32)
  return local[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]


def refuse_two_spellings(ids: list[str], field: str) -> None:
  """Ids that differ in case, leading zeros or a spreadsheet's '.0' are one patient under two ids."""
  same = collections.Counter(re.sub(r'^0+(?=.)|\.0+$', '', patient.lower()) for patient in ids)
  twice = sum(n > 1 for n in same.values())
  if twice:
    raise EagrlError(f'{field}: {twice} patients have two ids that differ only in case, leading zeros or ".0"; '
                     'write each id in one way')


def _may_be_shown(entry: str, events: Events) -> bool:
  """Whether an entry of the feature or unit column can stand in a message: it is no id, number or date."""
  return entry not in events.patients and is_word(entry)


def features_of(events: Events, path: str | Path | None, columns: Columns) -> tuple[FeatureTable, np.ndarray]:
  """The table, and the feature id of every name in the file."""
  names = list(events.features)
  if len(names) > MOST_FEATURES:
    raise EagrlError(f'{columns.field("feature")}: {len(names)} different names, where {MOST_FEATURES} features are '
                     'the most; check which column holds the names')
  if path is not None:
    table = store.read_features(path)
    unknown = [name for name in names if table.find(name) is None]
    alike = sum(table.near(name, 0.6) is not None for name in unknown)
    # Hardly a column of features, when most names are unknown and unlike any: its entries may be anything.
    stranger = 2 * len(unknown) > len(names) and 2 * alike < len(unknown)
    if stranger or not all(_may_be_shown(name, events) for name in unknown):
      raise EagrlError(f'data.path: {len(unknown)} of {len(names)} names in the column {columns.feature!r} are not in '
                       'data.features; check --config.data.columns.feature and the features file')
    if unknown:
      near = table.near(unknown[0], 0.6)
      meant = f'; did you mean {near!r}?' if near else ''
      raise EagrlError(f'data.path: unknown feature {unknown[0]!r}{meant} ({len(unknown)} of {len(names)} are not in '
                       'data.features: list them there, or remove their rows)')
    return table, np.array([table.find(name) for name in names], np.int32)
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
  feature = feature_of[events.feature]
  usable = usable & chosen[feature]
  for f in np.flatnonzero(chosen):
    mine = np.flatnonzero(usable & (feature == f))
    usable[mine] = validation.possible(table[int(f)], value[mine])
  rows = np.flatnonzero(usable)
  if len(rows):
    since = np.nan_to_num(events.available[rows], nan=-np.inf)
    order = rows[np.lexsort((rows, since, feature[rows], events.hour[rows], events.patient[rows]))]
    cell = np.stack([events.patient[order], events.hour[order], feature[order]])
    last = np.append(np.any(np.diff(cell) != 0, axis=0), True)
    final = order[np.flatnonzero(last)[np.cumsum(np.append(0, last[:-1]))]]  # the last row of each row's cell
    out[order] = (value[order] != value[final]) | (events.censor[order] != events.censor[final])
  return out


def known_too_late(events: Events, end: np.ndarray, start: np.ndarray, window_hours: float) -> np.ndarray:
  """Values measured before the prediction and available only after it. `[rows]` bool

  Args:
    end: [rows] hour after which nothing of the row's patient may be used, NaN none.
    start: [rows] hour of the patient's first row.
    window_hours: the prediction is made so long after the first row; 0 = from the whole record.
  """
  moment = start + (window_hours or np.inf)
  return (events.available > np.fmin(end, moment)) & ~(events.hour > end) & (events.hour < moment)


def _decimals(value: np.ndarray) -> int:
  """Digits after the point that nearly all values are written with: at most 3, or what shows 3 of a median below .1."""
  value = value[np.isfinite(value)]
  middle = float(np.median(np.abs(value[value != 0]))) if value.any() else 1.0
  most = int(np.clip(2 - np.floor(np.log10(middle)), 3, MOST_DECIMALS))
  near = min(1e-9, 1e-3 * middle)
  exact = (d for d in range(most) if not len(value) or np.mean(np.abs(value - np.round(value, d)) < near) >= 0.95)
  return next(exact, most)


def convert(events: Events, table: FeatureTable, feature_of: np.ndarray,
            count: collections.Counter[str]) -> tuple[np.ndarray, np.ndarray]:
  """Values in the specs' units; levels that are written as words become numbers.

  A value without a unit is taken to be in its spec's. A word that is no level of a feature with levels is missing, and
  counted by feature: levels are ordered, and it has no place among them.

  Returns:
    Values `[rows] float64`, NaN missing, and on which side of them what was measured lies `[rows] int8`, see `Cohort`.
  """
  value, censor, feature = events.value.copy(), events.censor.copy(), feature_of[events.feature]
  for f, spec in enumerate(table):
    level = {canonical(word): number for number, word in spec.levels}
    for word, code in events.words.items() if level else ():
      rows = (events.word == code) & (feature == f)
      number = level.get(canonical(word), level.get(canonical(re.sub(r'^[0-9]+', '', word))))
      if rows.any():
        value[rows] = np.nan if number is None else number
        count['worded' if number is not None else f'{NO_LEVEL}: {spec.name}'] += int(rows.sum())
        count['text'] -= int(rows.sum())
  for unit, code in events.units.items():
    rows = np.flatnonzero(events.unit == code)
    for f in np.unique(feature[rows]):
      spec, mine = table[int(f)], rows[feature[rows] == f]
      if (known := units.into(spec, unit)) is None:
        what = repr(unit) if _may_be_shown(unit, events) else 'an entry that is no unit'
        raise EagrlError(f'data.path: {spec.name!r} occurs in {what}, which its spec in {spec.unit!r} does not '
                         'accept; add it to accepted_units, or check --config.data.columns.unit')
      scale, offset = known
      mine = mine[~np.isin(value[mine], spec.sentinels)]  # a code for missing has no unit
      value[mine] = scale * value[mine] + offset
      if scale < 0:
        censor[mine] *= -1
  return value, censor
