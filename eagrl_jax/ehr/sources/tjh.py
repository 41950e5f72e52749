"""TJH: COVID-19 inpatients of Tongji Hospital, one xlsx (doi 10.1038/s42256-020-0180-7, MIT licence).

The order of patients in the file is the outcome and does not leave this module. Admission and discharge times give away
the length of stay: of them only the end of the stay leaves it, as an outcome.
"""

from __future__ import annotations

import collections
import datetime
import difflib
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl

from eagrl_jax.ehr import validation
from eagrl_jax.ehr.features import canonical
from eagrl_jax.ehr.records import Cohort, hashed_order
from eagrl_jax.ehr.sources import headers
from eagrl_jax.ehr.sources.tjh_features import FEATURES
from eagrl_jax.types import EagrlError

_BASE = {
    'patient': ('PATIENT_ID',), 'time': ('RE_DATE',), 'age': ('age', '年龄'), 'sex': ('gender', '性别'),
    'discharge': ('Discharge time', '出院时间'), 'outcome': ('outcome', '出院方式'),
}
_OUTCOMES = ('discharge', 'outcome')
_CONSTANT = ('2019-nCoV nucleic acid detection', '2019-nCoV核酸检测')
_DROPPED = ('Admission time', '入院时间', *_CONSTANT)
_SEX = {1: 1, 2: 0}
_PH, _WBC, _RBC, _HEMATOCRIT = (FEATURES.require(name, 'tjh') for name in
                                ('blood pH', 'white blood cell count', 'red blood cell count', 'hematocrit'))


@np.errstate(over='ignore')  # what float32 cannot hold becomes infinite, and is counted as not finite
def load(path: str | Path, *, keep_after_discharge: bool = False, labelled: bool = True,
         window_hours: float = 0.0) -> Cohort:
  """Reads the published workbook.

  Args:
    path: the xlsx; English or Chinese headers.
    keep_after_discharge: keep the rows dated after discharge or death, as published work does.
      They are results reported late; without them two patients have no record left.
    labelled: False reads new patients: outcome and discharge are neither needed nor read, labels are 0, and rows of
      every date are kept.
    window_hours: what is predicted from so many first hours; stays that ended before are left out, for then the outcome
      is known already. 0 = from the whole record.

  Returns:
    A validated cohort. Hours count from a patient's first dated row, kept or not.

  Raises:
    EagrlError: not an xlsx, missing or unknown columns, contradictory outcomes.
  """
  header, rows = _read(Path(path))
  base, labs = _columns(header, labelled)
  count: collections.Counter[str] = collections.Counter()
  dated: list[tuple[Any, datetime.datetime, tuple]] = []
  facts: dict[Any, tuple] = {}
  current = None
  for row in rows:
    current = row[base['patient']] if row[base['patient']] is not None else current
    if current is None:
      raise EagrlError('data.path: the first row has no PATIENT_ID; keep the rows of a patient together')
    fact = tuple(row[base[k]] if k in base else None for k in ('age', 'sex', 'outcome', 'discharge'))
    if facts.setdefault(current, fact) != fact:
      raise EagrlError('data.path: a patient has two different ages, sexes, outcomes or discharge times; '
                       'give each patient one of each')
    if row[base['time']] is None:
      count['undated'] += 1
    else:
      dated.append((current, _moment(row[base['time']], 'RE_DATE'), row))

  first: dict[Any, datetime.datetime] = {}
  for patient, moment, _ in dated:
    first[patient] = min(first.get(patient, moment), moment)
  judged = [p for p in facts if p in first and (facts[p][2] in (0, 1) or not labelled)]
  known = [p for p in judged if not (labelled and _stay(facts[p][3], first[p]) < window_hours)]
  index = {patient: i for i, patient in enumerate(known)}
  dated = [entry for entry in dated if entry[0] in index]
  patient, hour, feature, value, censor = _events(dated, index, first, facts, labs, keep_after_discharge, count)
  constant = [i for i, name in enumerate(header) if canonical(name) in {canonical(n) for n in _CONSTANT}]
  steps = [('read', len(facts), 'patients'), ('read', len(rows), 'rows'), ('without date', count['undated'], 'rows'),
           ('without any dated row', len(facts) - len(first), 'patients'),
           *((('without outcome', len(first) - len(judged), 'patients'),
              *([('stay ended within the window', len(judged) - len(known), 'patients')] if window_hours else []),
              ('after discharge' + (', kept' if keep_after_discharge else ''), count['late'], 'rows'))
             if labelled else ()),
           ('constant column, 2019-nCoV nucleic acid detection',
            sum(row[c] is not None for c in constant for row in rows), 'values'),
           ('assay limit written as < or >', count['censored'], 'values'), ('text', count['text'], 'values'),
           ('of a urinalysis row: pH and cells', count['urine'], 'values'),
           ('pH in steps of 0.5, a dipstick', count['dipstick'], 'values')]
  cohort = Cohort(
      name=f'tjh_{window_hours:g}h' if window_hours else 'tjh', task='mortality',
      setting='inpatients with COVID-19 at a hospital in Wuhan', features=FEATURES,
      subject_id=np.array([_name(p) for p in known], str),
      age=np.array([_age(facts[p][0]) for p in known], np.float32),
      sex=np.array([_SEX.get(facts[p][1], -1) for p in known], np.int8),
      label=np.array([int(facts[p][2] or 0) for p in known], np.int8), patient=patient, hour=hour, feature=feature,
      value=value, attrition=tuple(steps), censor=censor,
      stay_end=np.array([_stay(facts[p][3], first[p]) for p in known], np.float32) if labelled else None)
  if not len(cohort):
    raise EagrlError('data.path: no patient has a dated row' + (
        ' and an outcome of 0 or 1; check those columns' if labelled and not judged else
        f' and a stay of {window_hours:g} hours; set data.window_hours lower' if labelled else
        '; check the column RE_DATE'))
  cohort = validation.validate(cohort.take(hashed_order(cohort.subject_id, cohort.name)), judge_features=labelled)
  validation.check(cohort, labelled)
  return cohort


def _read(path: Path) -> tuple[list[str], list[tuple]]:
  if not path.is_file():
    raise EagrlError(f'data.path: there is no file {path.name}; give the TJH xlsx')
  try:
    file = path.open('rb')
  except OSError:
    raise EagrlError(f'data.path: {path.name} cannot be opened; check its permissions') from None
  with file:  # a workbook that is refused would stay open
    try:
      book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    except (openpyxl.utils.exceptions.InvalidFileException, zipfile.BadZipFile, KeyError, OSError, ValueError,
            zlib.error, SyntaxError, EOFError, NotImplementedError, TypeError, AttributeError, IndexError):
      raise EagrlError(f'data.path: {path.name} is not a readable xlsx workbook') from None
    try:
      rows = list(book.worksheets[0].iter_rows(values_only=True))
    except (zipfile.BadZipFile, SyntaxError, ValueError, KeyError, EOFError, zlib.error, NotImplementedError, TypeError,
            AttributeError, IndexError):
      raise EagrlError(f'data.path: {path.name} is damaged; get the workbook again') from None
    finally:
      book.close()
  if len(rows) < 2:
    raise EagrlError(f'data.path: {path.name} holds no rows')
  header = ['' if cell is None else str(cell).strip() for cell in rows[0]]
  return header, [row + (None,) * (len(header) - len(row)) for row in rows[1:] if any(c is not None for c in row)]


def _columns(header: list[str], labelled: bool) -> tuple[dict[str, int], dict[int, int]]:
  """Column of every base field, those of the outcome only if `labelled`, and feature id of every laboratory column."""
  base: dict[str, int] = {}
  labs: dict[int, int] = {}
  spelling = {canonical(name): field for field, names in _BASE.items() for name in names}
  dropped = {canonical(name) for name in _DROPPED}
  wanted = [names[0] for names in _BASE.values()]
  if not any(canonical(name) in spelling or FEATURES.find(name) is not None for name in header):
    raise EagrlError(f'data.path: the workbook {headers.lacking(wanted[0], header, wanted)}')
  for column, name in enumerate(header):
    field, feature = spelling.get(canonical(name)), FEATURES.find(name)
    if not name or canonical(name) in dropped:
      continue
    if field is None and feature is None:
      raise EagrlError(f'data.path: {name!r} is not a TJH column; rename it (nearest: '
                       f'{FEATURES[_nearest(name)].name!r}) or remove it')
    if field in base or feature in labs.values():
      raise EagrlError(f'data.path: two columns mean {name!r}; remove one')
    if field is not None:
      base[field] = column
    elif feature is not None:
      labs[column] = feature
  if not labelled:
    base = {field: column for field, column in base.items() if field not in _OUTCOMES}
  for field, names in _BASE.items():
    if field not in base and (labelled or field not in _OUTCOMES):
      raise EagrlError(f'data.path: the workbook {headers.lacking(names[0], header, wanted)}')
  if not labs:
    raise EagrlError('data.path: no laboratory column is known; give the TJH workbook')
  return base, labs


def _nearest(name: str) -> int:
  spellings = {alias: i for i, spec in enumerate(FEATURES) for alias in (spec.name, *spec.aliases)}
  return spellings[difflib.get_close_matches(name, spellings, n=1, cutoff=0.0)[0]]


def _events(dated: list[tuple[Any, datetime.datetime, tuple]], index: dict, first: dict, facts: dict,
            labs: dict[int, int], keep_late: bool, count: collections.Counter[str]) -> list[np.ndarray]:
  patient, hour, feature, value, censor = [], [], [], [], []
  for who, moment, row in dated:
    discharge = facts[who][3]
    if discharge is not None and moment > _moment(discharge, 'Discharge time'):
      count['late'] += 1
      if not keep_late:
        continue
    numbers, signs = _numbers({f: row[c] for c, f in labs.items() if row[c] is not None}, count)
    for f, x in _blood_only(numbers, count).items():
      patient.append(index[who])
      hour.append((moment - first[who]).total_seconds() / 3600)
      feature.append(f)
      value.append(x)
      censor.append(signs.get(f, 0))
  return [np.array(patient, np.int32), np.array(hour, np.float32), np.array(feature, np.int16),
          np.array(value, np.float32), np.array(censor, np.int8)]


def _numbers(cells: dict[int, Any], count: collections.Counter[str]) -> tuple[dict[int, float], dict[int, int]]:
  """Number of every cell that holds one, and on which side of it the cells of text lie, see `Cohort.censor`."""
  signs: dict[int, int] = {}
  text = {f: cell for f, cell in cells.items() if not isinstance(cell, int | float)}
  if text:
    parsed = validation.parse_numbers([str(cell) for cell in text.values()])
    count['censored'] += parsed.censored
    count['text'] += parsed.text
    cells = cells | dict(zip(text, parsed.value.tolist()))
    signs = dict(zip(text, parsed.censor.tolist()))
  return {f: float(x) for f, x in cells.items() if x == x}, signs


def _blood_only(row: dict[int, float], count: collections.Counter[str]) -> dict[int, float]:
  """Takes out what was measured in urine but shares a column with blood."""
  urine: set[int] = set()
  if _PH in row and _HEMATOCRIT not in row and (_WBC in row or _RBC in row):
    urine = {_PH, _WBC, _RBC} & row.keys()  # cells and pH without the rest of a blood count
    count['urine'] += len(urine)
  elif _PH in row and row[_PH] < 7.5 and (2 * row[_PH]).is_integer():
    urine = {_PH}
    count['dipstick'] += 1
  return {f: x for f, x in row.items() if f not in urine}


def _moment(cell: Any, column: str) -> datetime.datetime:
  try:
    moment = cell if isinstance(cell, datetime.datetime) else datetime.datetime.fromisoformat(str(cell))
    if moment.tzinfo is None:  # one with a zone cannot be compared with the others, which have none
      return moment
    raise ValueError
  except ValueError:
    raise EagrlError(f'data.path: the column {column!r} holds something that is not a date without a time zone; '
                     'format it as a date') from None


def _stay(discharge: Any, first: datetime.datetime) -> float:
  """Hours from the first dated row to discharge or death; 0 where that came before, NaN where it is not said."""
  if discharge is None:
    return float('nan')
  return max(0.0, (_moment(discharge, 'Discharge time') - first).total_seconds() / 3600)


def _age(cell: Any) -> float:
  return float(cell) if isinstance(cell, int | float) else float('nan')


def _name(patient: Any) -> str:
  return str(int(patient)) if isinstance(patient, float) and patient.is_integer() else str(patient).strip()
