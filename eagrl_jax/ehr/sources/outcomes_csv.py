"""An outcomes file, `patient,label[,age,sex,until]`: one row a patient."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from eagrl_jax.ehr import validation
from eagrl_jax.ehr.sources.csv_text import Reading, blocks, hours
from eagrl_jax.ehr.sources.event_rows import Columns
from eagrl_jax.types import EagrlError

SEX = {'m': 1, 'male': 1, 'f': 0, 'female': 0}
_OLD, _OLDEST = r'> ?89|>= ?90|≥ ?90|90 ?\+', '90'  # one group in released data, for privacy
_LABEL = {'1': 1, '1.0': 1, 'true': 1, '0': 0, '0.0': 0, 'false': 0}


def parse_sex_codes(text: str, field: str = 'data.sex_codes') -> dict[str, int] | None:
  """`'1=m,2=f,9=unknown'` -> code of every entry; None where the text is empty.

  Raises:
    EagrlError: not such pairs.
  """
  words = SEX | {'unknown': -1}
  pairs = [pair.partition('=') for pair in text.split(',') if pair.strip()]
  codes = {code.strip(): words.get(word.strip().lower(), -2) for code, _, word in pairs}
  if -2 in codes.values() or '' in codes:
    raise EagrlError(f'{field}={text!r}: write code=m, code=f or code=unknown, separated by commas')
  return codes or None


@dataclasses.dataclass(frozen=True)
class Until:
  """Raw text of the `until` column; parsed once the format of event times is known."""

  text: list[str | None]  # [rows]
  reading: Reading

  def of(self, kinds: set[str], field: str) -> np.ndarray:
    """Hours on the events' clock, NaN unknown. `[rows]`"""
    return hours(pa.array(self.text, pa.string()), set(kinds), field, self.reading)


def people(path: Path, field: str, columns: Columns, sex_codes: Mapping[str, int], reading: Reading,
           more: Mapping[str, bool]) -> tuple[list[str], np.ndarray, np.ndarray, dict[str, list[Any]]]:
  """A file of one row a patient.

  Args:
    field: of the config, for errors.
    more: further headers to read -> required.

  Returns:
    Ids, age in years (NaN unknown), sex (1 male, 0 female, -1 unknown), and the text of all columns by header.

  Raises:
    EagrlError: a column that the config names is absent, or an id, age or sex that cannot be read.
  """
  wanted = {columns.outcome_patient: True, columns.age: columns.age != Columns.age,
            columns.sex: columns.sex != Columns.sex, **more}
  rows: dict[str, list[Any]] = collections.defaultdict(list)
  for block in blocks(path, field, wanted, reading, times=(columns.until,)):
    for header, column in block.items():
      rows[header] += column.to_pylist()
  who = rows[columns.outcome_patient]
  if not who:
    raise EagrlError(f'{field}: {path.name} holds no rows')
  if None in who:
    raise EagrlError(f'{field}: a row has no {columns.outcome_patient!r}; fill it in or remove the row')
  absent = [None] * len(who)
  ages = validation.parse_numbers([_OLDEST if age and re.fullmatch(_OLD, age) else age
                                   for age in rows.get(columns.age) or absent], reading.decimal)
  if ages.text or ages.censored:
    raise EagrlError(f'{field}: {ages.text + ages.censored} entries of {columns.age!r} are not plain numbers; '
                     'give years')
  codes = {str(k).lower(): v for k, v in sex_codes.items()}
  sex = np.array([-1 if x is None else codes.get(x.lower(), -2) for x in rows.get(columns.sex) or absent], np.int8)
  if (sex == -2).any():
    raise EagrlError(f'{field}: {(sex == -2).sum()} entries of {columns.sex!r} have an unknown code; '
                     'give --config.data.sex_codes=, such as 1=m,2=f')
  return who, ages.value, sex, rows


def read(path: Path, columns: Columns, sex_codes: Mapping[str, int], reading: Reading,
         count: collections.Counter[str]) -> tuple[dict[str, int], np.ndarray, np.ndarray, np.ndarray, Until]:
  """Ids with a label -> row, and label, age (NaN unknown), sex (1 male, 0 female, -1 unknown) and end of every row.

  Raises:
    EagrlError: an outcome, age or sex that cannot be read, or a patient listed twice.
  """
  who, age, sex, rows = people(path, 'data.outcomes', columns, sex_codes, reading,
                               {columns.label: True, columns.until: columns.until != Columns.until})
  label = np.array([-1 if x is None else _LABEL.get(x.lower(), -2) for x in rows[columns.label]], np.int8)
  if (label == -2).any():
    raise EagrlError(f'data.outcomes: {(label == -2).sum()} entries of {columns.label!r} are not 0, 1, true or false')
  seen: dict[str, int] = {}
  for patient, y in zip(who, label.tolist()):
    if seen.setdefault(patient, y) != y:
      raise EagrlError('data.outcomes: a patient has two different outcomes; keep the right one')
  if len(seen) != len(who):
    raise EagrlError(f'data.outcomes: {len(who) - len(seen)} patients are listed twice; keep one row each')
  count['unlabelled'] = int((label == -1).sum())
  until = Until(rows.get(columns.until) or [None] * len(who), reading)
  return {p: i for i, p in enumerate(who) if label[i] >= 0}, label, age, sex, until
