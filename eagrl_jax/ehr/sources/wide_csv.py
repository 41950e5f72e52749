"""A wide CSV or parquet file, one row a patient and time, one column a feature: melted block by block to a long one.

A first row with `unit` or `units` for the patient gives the units of the columns. A column `available` says when a
row's values could be known. All else, and the outcomes, is as in `long_csv`.
"""

from __future__ import annotations

import codecs
import collections
import dataclasses
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from eagrl_jax.ehr.features import canonical
from eagrl_jax.ehr.records import Cohort
from eagrl_jax.ehr.sources import csv_text, damage, event_rows, headers, long_csv
from eagrl_jax.types import EagrlError

_NO_HEADER = '|__index_level_[0-9]+__'  # the latter is how pandas writes row numbers


def load(path: str | Path, outcomes: str | Path, *, columns: event_rows.Columns = event_rows.Columns(),
         features: str | Path | None = None, task: str = 'mortality', setting: str = 'patients in hospital',
         sex_codes: Mapping[str, int] | None = None, reading: csv_text.Reading = csv_text.Reading(),
         window_hours: float = 0.0) -> Cohort:
  """Reads measurements and outcomes; arguments as of `long_csv.load`.

  Args:
    columns: patient and time of the wide file, and those of the outcomes file.

  Returns:
    A validated cohort; hours count from each patient's first row that holds any value.

  Raises:
    EagrlError: what `long_csv.load` refuses, two columns of one name, an outcome among the measurements.
  """
  columns = dataclasses.replace(columns, feature='feature', value='value', unit='unit')
  with tempfile.TemporaryDirectory(prefix='cohort-') as folder:
    melted = Path(folder) / unpacked_name(Path(path))
    melt(Path(path), melted, columns, reading)
    return long_csv.load(melted, outcomes, columns=columns, features=features, name='wide_csv', task=task,
                         setting=setting, sex_codes=sex_codes, reading=reading, window_hours=window_hours)


def unpacked_name(path: Path) -> str:
  """A file's name without what says how it is packed: the long file is written plain."""
  return path.stem if path.suffix in damage.PACKED else path.name


def melt(path: Path, target: Path, columns: event_rows.Columns, reading: csv_text.Reading) -> None:
  """Writes a wide CSV, or parquet file, as a long one with the columns available, feature, value and unit."""
  parts = _long(path, columns, reading)
  if target.suffix == '.parquet':
    with pq.ParquetWriter(target, next(parts).schema) as writer:
      for part in parts:
        writer.write_table(part)
    return
  encoder = codecs.getincrementalencoder(reading.encoding)()  # one mark of byte order a file, not one a part
  with target.open('wb') as file:
    for part in parts:
      text = pa.BufferOutputStream()
      pacsv.write_csv(part, text, pacsv.WriteOptions(include_header=not file.tell(), delimiter=reading.delimiter))
      file.write(encoder.encode(text.getvalue().to_pybytes().decode()))


def _long(path: Path, columns: event_rows.Columns, reading: csv_text.Reading) -> Iterator[pa.Table]:
  """The filled cells of one column of one block at a time, as rows of `names`; first an empty one."""
  names = (columns.patient, columns.time, columns.available, 'feature', 'value', 'unit')
  schema = pa.schema([(name, pa.string()) for name in names])
  yield schema.empty_table()
  units: dict[str, str] | None = None
  for block in csv_text.record_batches(path, 'data.path', reading, times=names[1:3]):
    cells = {name.strip(): pc.utf8_trim_whitespace(block.column(i)) for i, name in enumerate(block.schema.names)}
    if units is None:  # the first block: header and units
      _check_header([name.strip() for name in block.schema.names], path.name, columns)
      first = block.num_rows and (cells[columns.patient][0].as_py() or '').lower() in ('unit', 'units')
      units = {name: column[0].as_py() or '' for name, column in cells.items()} if first else {}
      cells = {name: column.slice(1) for name, column in cells.items()} if first else cells
    for name in (n for n in cells if n not in names[:3]):
      filled = pc.fill_null(pc.not_equal(cells[name], ''), False)
      who, when, value = (cells[n].filter(filled) for n in (columns.patient, columns.time, name))
      constant = lambda x, n=len(value): pa.repeat(pa.scalar(x, pa.string()), n)
      known = cells[columns.available].filter(filled) if columns.available in cells else constant('')
      if len(value):
        yield pa.table([who, when, known, constant(name), value, constant(units.get(name, ''))], schema=schema)


def _check_header(header: list[str], file: str, columns: event_rows.Columns) -> None:
  renamed = [columns.available] if columns.available != event_rows.Columns.available else []
  wanted = (columns.patient, columns.time, *renamed)
  if {columns.feature, columns.value} <= set(header):
    raise EagrlError(f'data.path: {file} has the columns {columns.feature!r} and {columns.value!r}, so it is a long '
                     'file: choose the variant :csv')
  for name in wanted:
    if name not in header:
      raise EagrlError(f'data.path: {file} {headers.lacking(name, header, wanted, fix=headers.OF_CSV)}')
  headers.check_spelling(columns.available, header, 'data.path', file)
  if any(re.fullmatch(_NO_HEADER, name) for name in header):
    raise EagrlError(f'data.path: {file} has a column without a header; name it or remove it')
  twice = [name for name, n in collections.Counter(map(canonical, header)).items() if n > 1]
  if twice:
    shown = next(name for name in header if canonical(name) == twice[0])
    raise EagrlError(f'data.path: {file} has two columns {shown!r}; keep one')
  of_outcomes = {canonical(name) for name in (columns.outcome_patient, columns.label, columns.age, columns.sex,
                                              columns.until)}
  for name in header:
    if canonical(name) in of_outcomes and name not in (columns.patient, columns.time, columns.available):
      raise EagrlError(f'data.path: the column {name!r} belongs to the outcomes file; remove it from {file}, where it '
                       'would be shown to the model')
