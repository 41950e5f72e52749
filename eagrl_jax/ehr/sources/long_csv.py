"""Any long CSV, `patient,time,feature,value[,unit]`, with an outcomes CSV, `patient,label[,age,sex]`.

Both may be gzipped. The events are read in blocks, so that only numbers stay in memory. Nothing is
guessed: not a unit, not a sex code, not which of two ids or outcomes is the right one.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from eagrl_jax.ehr import store, validation
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable, canonical
from eagrl_jax.ehr.records import Cohort, hashed_order
from eagrl_jax.types import EagrlError

_EMPTY = ['', 'NA', 'N/A', 'NaN', 'nan', 'null', 'NULL', 'None']
_SEX = {'m': 1, 'male': 1, 'f': 0, 'female': 0}
_LABEL = {'1': 1, '1.0': 1, 'true': 1, '0': 0, '0.0': 0, 'false': 0}
_LATEST = 1e6  # hours: 114 years
_OFFSET = r'(?P<offset>[Zz]|[+-][0-9]{2}:?[0-9]{2})$'


@dataclasses.dataclass(frozen=True)
class Columns:
  """Header names of the two files; `unit`, `age` and `sex` may be absent."""

  patient: str = 'patient'
  time: str = 'time'
  feature: str = 'feature'
  value: str = 'value'
  unit: str = 'unit'
  outcome_patient: str = 'patient'
  label: str = 'label'
  age: str = 'age'
  sex: str = 'sex'


@dataclasses.dataclass
class _Events:
  """Rows of the events file as numbers; names are kept once each."""

  patients: dict[str, int]
  features: dict[str, int]
  units: dict[str, int]
  patient: np.ndarray  # int32
  feature: np.ndarray  # int32
  unit: np.ndarray  # int32, -1 without unit
  hour: np.ndarray  # float64, on the file's own clock
  value: np.ndarray  # float64


def load(path: str | Path, outcomes: str | Path, *, columns: Columns = Columns(), features: str | Path | None = None,
         name: str = 'csv', task: str = 'mortality', setting: str = 'patients in hospital',
         sex_codes: Mapping[str, int] | None = None, encoding: str = 'utf8', delimiter: str = ',') -> Cohort:
  """Reads events and outcomes.

  Args:
    path: events; time is in hours (a number) or ISO 8601, all of one kind and one time zone.
    outcomes: one row a patient; label 0/1 or true/false, sex m/f/male/female or `sex_codes`.
    columns: header names.
    features: YAML or JSON list of FeatureSpec fields. Without it every feature name becomes a
      feature without ranges, in the one unit that the file gives for it.
    name, task, setting: see Cohort.
    sex_codes: file's code -> 1 male, 0 female, -1 unknown.
    encoding, delimiter: of both files.

  Returns:
    A validated cohort; hours count from each patient's first row.

  Raises:
    EagrlError: anything that would need a guess, see the module's docstring.
  """
  reading = (encoding, delimiter)
  count: collections.Counter[str] = collections.Counter()
  ids, label, age, sex = _read_outcomes(Path(outcomes), columns, sex_codes or _SEX, reading, count)
  events = _read_events(Path(path), columns, reading, count)
  _refuse_two_spellings([*ids, *(p for p in events.patients if p not in ids)], columns.patient)
  table, feature_of = _features(events, features, columns)
  value = _convert(events, table, feature_of)

  start = np.full(len(events.patients), np.inf)
  np.minimum.at(start, events.patient, events.hour)
  known = [p for p in ids if p in events.patients]
  row_of = np.full(len(events.patients), -1, np.int32)
  row_of[[events.patients[p] for p in known]] = np.arange(len(known))
  keep = (row_of[events.patient] >= 0) & ~np.isnan(value)
  if not known:
    raise EagrlError(f'data.outcomes: no id in {columns.outcome_patient!r} occurs in the events; check both id columns')
  pick = [ids[p] for p in known]
  steps = [('read', len(events.patients), 'patients'), ('read', count['rows'], 'rows'),
           ('without patient, time or feature', count['incomplete'], 'rows'),
           ('without value', count['empty'], 'values'), ('text', count['text'], 'values'),
           ('assay limit written as < or >', count['censored'], 'values'),
           ('without outcome', len(events.patients) - len(known), 'patients'),
           ('outcome left empty', count['unlabelled'], 'patients'),
           ('outcome without a row', len(ids) - len(known), 'patients')]
  cohort = Cohort(
      name=name, task=task, setting=setting, features=table, subject_id=np.array(known, str),
      age=age[pick].astype(np.float32), sex=sex[pick], label=label[pick], patient=row_of[events.patient][keep],
      hour=(events.hour - start[events.patient])[keep].astype(np.float32),
      feature=feature_of[events.feature][keep].astype(np.int16), value=value[keep].astype(np.float32),
      attrition=tuple(steps))
  cohort = validation.validate(cohort.take(hashed_order(cohort.subject_id, name)))
  validation.check(cohort)
  return cohort


def parse_sex_codes(text: str) -> dict[str, int] | None:
  """`'1=m,2=f,9=unknown'` -> code of every entry; None where the text is empty.

  Raises:
    EagrlError: not such pairs.
  """
  words = _SEX | {'unknown': -1}
  pairs = [pair.partition('=') for pair in text.split(',') if pair.strip()]
  codes = {code.strip(): words.get(word.strip().lower(), -2) for code, _, word in pairs}
  if -2 in codes.values() or '' in codes:
    raise EagrlError(f'data.sex_codes={text!r}: write code=m, code=f or code=unknown, separated by commas')
  return codes or None


def _blocks(path: Path, field: str, wanted: dict[str, bool],
            reading: tuple[str, str]) -> Iterator[dict[str, pa.Array]]:
  """The wanted columns as trimmed text, block by block. `wanted`: header -> required."""
  if not path.is_file():
    raise EagrlError(f'{field}: there is no file {path.name}')
  # One thread: Arrow names the row of an error only then.
  read = pacsv.ReadOptions(encoding=reading[0], block_size=16 << 20, use_threads=False)
  parse = pacsv.ParseOptions(delimiter=reading[1])
  try:
    headers = {name.strip(): name for name in pacsv.open_csv(path, read, parse).schema.names}
    for name in (n for n, required in wanted.items() if required and n not in headers):
      near = difflib.get_close_matches(name, headers, n=1, cutoff=0.0)
      raise EagrlError(f'{field}: {path.name} has no column {name!r}; the nearest header is {near[0]!r}')
    found = {name: headers[name] for name in wanted if name in headers}
    convert = pacsv.ConvertOptions(
        include_columns=list(found.values()), column_types={h: pa.string() for h in found.values()},
        strings_can_be_null=True, null_values=_EMPTY)
    for batch in pacsv.open_csv(path, read, parse, convert):
      yield {name: pc.utf8_trim_whitespace(batch.column(raw)) for name, raw in found.items()}
  except (pa.ArrowException, OSError, UnicodeError, LookupError) as error:
    row = re.search(r'Row #(\d+)', str(error))  # the rest of Arrow's message quotes the row
    where = f' at row {row[1]}' if row else ''
    raise EagrlError(f'{field}: {path.name} is not a CSV in {reading[0]} separated by {reading[1]!r}{where}; '
                     'check the file, --config.data.encoding and --config.data.delimiter') from None


def _read_events(path: Path, columns: Columns, reading: tuple[str, str], count: collections.Counter[str]) -> _Events:
  codes: dict[str, dict[str, int]] = {'patient': {}, 'feature': {}, 'unit': {}}
  parts: dict[str, list[np.ndarray]] = collections.defaultdict(list)
  kinds: set[str] = set()
  wanted = {columns.patient: True, columns.time: True, columns.feature: True, columns.value: True,
            columns.unit: columns.unit != Columns.unit}
  for block in _blocks(path, 'data.path', wanted, reading):
    time, who, what, raw = (block[c] for c in (columns.time, columns.patient, columns.feature, columns.value))
    complete = pc.and_(pc.and_(pc.is_valid(time), pc.is_valid(who)), pc.is_valid(what))
    complete = complete.to_numpy(zero_copy_only=False)
    count['rows'] += len(complete)
    count['incomplete'] += int((~complete).sum())
    select = pa.array(complete)
    numbers = validation.parse_numbers(raw.filter(select))
    count['text'] += numbers.text
    count['censored'] += numbers.censored
    count['empty'] += int(pc.sum(pc.is_null(raw.filter(select))).as_py() or 0)
    parts['value'].append(numbers.value)
    parts['hour'].append(_hours(time.filter(select), kinds, columns.time))
    for field, column in (('patient', who), ('feature', what), ('unit', block.get(columns.unit))):
      filled = pa.nulls(int(complete.sum()), pa.string()) if column is None else column.filter(select)
      parts[field].append(_encode(filled, codes[field]))
  if not sum(map(len, parts['value'])):
    raise EagrlError(f'data.path: {path.name} holds no row with patient, time and feature')
  joined = {field: np.concatenate(arrays) for field, arrays in parts.items()}
  return _Events(codes['patient'], codes['feature'], codes['unit'], **joined)


def _encode(column: pa.Array, codes: dict[str, int]) -> np.ndarray:
  """Number of every entry in `codes`, which grows; -1 where empty."""
  encoded = column.dictionary_encode()
  local = np.array([codes.setdefault(x, len(codes)) for x in encoded.dictionary.to_pylist()] + [-1], np.int32)
  return local[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]


def _hours(text: pa.Array, kinds: set[str], field: str) -> np.ndarray:
  """Times as hours on the file's own clock; `kinds` collects how times are written and must keep one member."""
  plain = validation.parse_numbers(text)
  numeric = ~np.isnan(plain.value)
  if numeric.any():
    kinds.add('hours')
    if np.nanmax(np.abs(plain.value)) > _LATEST:
      raise EagrlError(f'data.{field}: a number is too large for hours; give hours or ISO 8601, not dates or seconds')
  hour = plain.value
  if not numeric.all():
    stamps = text.filter(pa.array(~numeric))
    offset = pc.struct_field(pc.extract_regex(stamps, _OFFSET), 'offset')
    kinds |= {'no zone' if o is None else o.upper() for o in pc.unique(offset).to_pylist()}
    try:
      instant = pc.cast(pc.replace_substring_regex(stamps, _OFFSET, ''), pa.timestamp('us'))
    except pa.ArrowException:
      raise EagrlError(f'data.{field}: a time is neither a number of hours nor ISO 8601; rewrite the column') from None
    hour[~numeric] = pc.cast(instant, pa.int64()).to_numpy(zero_copy_only=False) / 3.6e9
  if len(kinds) > 1 or plain.censored:
    raise EagrlError(f'data.{field}: times are written in several ways (hours, dates, time zones); use one')
  return hour


def _read_outcomes(path: Path, columns: Columns, sex_codes: Mapping[str, int], reading: tuple[str, str],
                   count: collections.Counter[str]) -> tuple[dict[str, int], np.ndarray, np.ndarray, np.ndarray]:
  """Ids with a label -> row, and label, age and sex of every row."""
  wanted = {columns.outcome_patient: True, columns.label: True, columns.age: columns.age != Columns.age,
            columns.sex: columns.sex != Columns.sex}
  rows: dict[str, list[Any]] = collections.defaultdict(list)
  for block in _blocks(path, 'data.outcomes', wanted, reading):
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

  ages = validation.parse_numbers(rows.get(columns.age) or [None] * len(who))
  if ages.text or ages.censored:
    raise EagrlError(f'data.outcomes: {ages.text + ages.censored} entries of {columns.age!r} are not plain numbers; '
                     'give years')
  codes = {str(k).lower(): v for k, v in sex_codes.items()}
  sex = np.array([-1 if x is None else codes.get(x.lower(), -2) for x in rows.get(columns.sex) or [None] * len(who)],
                 np.int8)
  if (sex == -2).any():
    raise EagrlError(f'data.outcomes: {(sex == -2).sum()} entries of {columns.sex!r} have an unknown code; '
                     'give --config.data.sex_codes=, such as 1=m,2=f')
  return {p: i for i, p in enumerate(who) if label[i] >= 0}, label, ages.value, sex


def _refuse_two_spellings(ids: list[str], field: str) -> None:
  """Ids that differ in case, leading zeros or a spreadsheet's '.0' are one patient under two ids."""
  same = collections.Counter(re.sub(r'^0+(?=.)|\.0+$', '', patient.lower()) for patient in ids)
  twice = sum(n > 1 for n in same.values())
  if twice:
    raise EagrlError(f'data.{field}: {twice} patients have two ids that differ only in case, leading zeros or ".0"; '
                     'write each id in one way')


def _may_be_shown(entry: str, events: _Events) -> bool:
  """Whether an entry of the feature or unit column can stand in a message: it is no id, number or date."""
  return entry not in events.patients and not re.match(r'^[\W\d_]*$|^\d{4}-\d\d', entry)


def _features(events: _Events, path: str | Path | None, columns: Columns) -> tuple[FeatureTable, np.ndarray]:
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
    units = [u for u, code in events.units.items() if (events.unit[mine] == code).any()]
    if len({_plain_unit(u) for u in units}) > 1:
      name = repr(same[0]) if _may_be_shown(same[0], events) else 'an entry that is also an id or a number'
      raise EagrlError(f'features: {name} occurs in {len(units)} units; check --config.data.columns.feature, or give a '
                       'features file with accepted_units')
    shown = ' '.join(re.sub(r'[,;<>\n]+', ' ', same[0]).split())
    specs.append(FeatureSpec(shown, units[0] if units else '', decimals=_decimals(events.value[mine]),
                             aliases=tuple(s for s in same if s != shown)))
  table = FeatureTable(tuple(specs))
  return table, np.array([table.require(name, 'data.path') for name in names], np.int32)


def _decimals(value: np.ndarray) -> int:
  value = value[~np.isnan(value)]
  exact = (d for d in range(3) if not len(value) or np.mean(np.abs(value - np.round(value, d)) < 1e-9) >= 0.95)
  return next(exact, 3)


def _plain_unit(unit: str) -> str:
  return unit.replace('µ', 'u').replace('μ', 'u').replace(' ', '').lower()


def _convert(events: _Events, table: FeatureTable, feature_of: np.ndarray) -> np.ndarray:
  """Values in the specs' units. A value without a unit is taken to be in its spec's."""
  value, feature = events.value.copy(), feature_of[events.feature]
  for unit, code in events.units.items():
    rows = np.flatnonzero(events.unit == code)
    for f in np.unique(feature[rows]):
      spec, mine = table[int(f)], rows[feature[rows] == f]
      if _plain_unit(unit) == _plain_unit(spec.unit):
        continue
      known = {_plain_unit(u): (scale, offset) for u, scale, offset in spec.accepted_units}
      if _plain_unit(unit) not in known:
        what = repr(unit) if _may_be_shown(unit, events) else 'an entry that is no unit'
        raise EagrlError(f'data.path: {spec.name!r} occurs in {what}, which its spec in {spec.unit!r} does not '
                         'accept; add it to accepted_units, or check --config.data.columns.unit')
      scale, offset = known[_plain_unit(unit)]
      value[mine] = scale * value[mine] + offset
  return value
