"""Text of a CSV, or of a parquet file of the same columns, block by block; and its times."""

from __future__ import annotations

import codecs
import dataclasses
import difflib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from eagrl_jax.ehr import validation
from eagrl_jax.ehr.sources import damage
from eagrl_jax.types import EagrlError

BLOCK = 16 << 20  # bytes read at once
_EMPTY = ('', 'NA', 'N/A', 'NaN', 'nan', 'null', 'NULL', 'None')
_SODIUM = 'NA'  # the one mark of a missing entry that is also a feature's name
_LATEST = 1e6  # hours: 114 years
_OFFSET = r'(?P<offset>[Zz]|[+-][0-9]{2}:?[0-9]{2})$'


@dataclasses.dataclass(frozen=True)
class Reading:
  """How a CSV is written."""

  encoding: str = 'utf8'
  delimiter: str = ','
  decimal: str = '.'  # or ','; the other mark is then no part of a number

  def __post_init__(self):
    if len(self.delimiter) != 1 or not self.delimiter.isascii() or self.delimiter in '"\n\r\0':
      raise EagrlError(f'data.delimiter={self.delimiter!r} is not one ASCII character that can separate columns; set '
                       '--config.data.delimiter=, such as ";"')
    try:
      'a'.encode(self.encoding if self.encoding.isprintable() else '')  # a line break is looked up as a space
      codecs.getincrementaldecoder(self.encoding)().decode(pa.py_buffer(b''))  # as a file is read
    except (LookupError, ValueError, AttributeError, TypeError):
      raise EagrlError(f'data.encoding={self.encoding!r} is no encoding of text; set --config.data.encoding=, such as '
                       'utf8') from None


def blocks(path: Path, field: str, wanted: dict[str, bool],
           reading: Reading, names: str = '') -> Iterator[dict[str, pa.Array]]:
  """The wanted columns as trimmed text, block by block; null where missing.

  Args:
    path: a CSV, or what ends in `.parquet`.
    wanted: header -> required.
    names: the column of feature names, where NA is sodium.
  """
  _check_there(path, field)
  marks = {name: pa.array([m for m in _EMPTY if name != names or m != _SODIUM]) for name in wanted}
  for block in (_parquet if path.suffix == '.parquet' else _csv)(path, field, wanted, reading):
    trimmed = {name: pc.utf8_trim_whitespace(column) for name, column in block.items()}
    yield {name: pc.if_else(pc.is_in(column, marks[name]), pa.scalar(None, pa.string()), column)
           for name, column in trimmed.items()}


def _found(headers: list[str], path: Path, field: str, wanted: dict[str, bool]) -> dict[str, str]:
  """Wanted name -> header of the file."""
  plain = {name.strip(): name for name in headers}
  for name in (n for n, required in wanted.items() if required and n not in plain):
    near = difflib.get_close_matches(name, plain, n=1, cutoff=0.0)
    raise EagrlError(f'{field}: {path.name} has no column {name!r}; the nearest header is {near[0]!r}')
  return {name: plain[name] for name in wanted if name in plain}


def record_batches(path: Path, field: str, reading: Reading,
                   chosen: Callable[[list[str]], list[str]] | None = None) -> Iterator[pa.RecordBatch]:
  """Blocks of a CSV, its columns as text; null where empty.

  Args:
    chosen: headers of the file -> those to read; None reads all.
  """
  _check_there(path, field)
  # One thread: Arrow names the row of an error only then.
  read = pacsv.ReadOptions(encoding=reading.encoding, block_size=BLOCK, use_threads=False)
  parse = pacsv.ParseOptions(delimiter=reading.delimiter, newlines_in_values=True)
  try:
    headers = pacsv.open_csv(path, read, parse).schema.names
    convert = pacsv.ConvertOptions(
        include_columns=chosen(headers) if chosen else None, column_types={h: pa.string() for h in headers},
        strings_can_be_null=True, null_values=[''])
    yield from pacsv.open_csv(path, read, parse, convert)
  except (pa.ArrowException, OSError, UnicodeError, LookupError) as error:
    row = re.search(r'Row #(\d+)', str(error))  # the rest of Arrow's message quotes the row
    where = damage.where(path, reading.encoding) or (f' at row {row[1]}' if row else '')
    raise EagrlError(f'{field}: {path.name} is not a CSV in {reading.encoding} separated by {reading.delimiter!r}'
                     f'{where}; check the file, --config.data.encoding and --config.data.delimiter') from None


def _check_there(path: Path, field: str) -> None:
  if not path.is_file():
    raise EagrlError(f'{field}: there is no file {path.name}')


def _csv(path: Path, field: str, wanted: dict[str, bool], reading: Reading) -> Iterator[dict[str, pa.Array]]:
  found: dict[str, str] = {}

  def chosen(headers: list[str]) -> list[str]:
    found.update(_found(headers, path, field, wanted))
    return list(found.values())

  for batch in record_batches(path, field, reading, chosen):
    yield {name: batch.column(header) for name, header in found.items()}


def _parquet(path: Path, field: str, wanted: dict[str, bool], reading: Reading) -> Iterator[dict[str, pa.Array]]:
  """Columns of any simple type, such as a MEDS label file has: numbers, texts, true or false, times."""
  try:
    with pq.ParquetFile(path) as file:
      found = _found(file.schema_arrow.names, path, field, wanted)
      for batch in file.iter_batches(columns=list(found.values())):
        columns = {name: pc.cast(batch.column(header), pa.string()) for name, header in found.items()}
        comma = reading.decimal == ','  # as the reader of numbers expects them
        yield {name: pc.replace_substring(column, '.', ',') if comma and _is_number(batch.column(found[name]).type)
               else column for name, column in columns.items()}
  except (pa.ArrowException, OSError) as error:
    raise EagrlError(f'{field}: {path.name} is not a parquet file of plain columns'
                     f' ({type(error).__name__}); check the file') from None


def _is_number(kind: pa.DataType) -> bool:
  return pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def hours(text: pa.Array, kinds: set[str], field: str, decimal: str) -> np.ndarray:
  """Times as hours on the file's own clock; `kinds` collects how times are written and must keep one member.

  Args:
    field: of the config, for errors.
  """
  plain = validation.parse_numbers(text, decimal)
  empty = pc.is_null(text).to_numpy(zero_copy_only=False)
  numeric = ~np.isnan(plain.value)
  if numeric.any():
    kinds.add('hours')
    if np.nanmax(np.abs(plain.value)) > _LATEST:
      raise EagrlError(f'{field}: a number is too large for hours; give hours or ISO 8601, not dates or seconds')
  hour = plain.value
  dated = ~numeric & ~empty
  if dated.any():
    stamps = text.filter(pa.array(dated))
    offset = pc.struct_field(pc.extract_regex(stamps, _OFFSET), 'offset')
    kinds |= {'no zone' if o is None else o.upper() for o in pc.unique(offset).to_pylist()}
    try:
      instant = pc.cast(pc.replace_substring_regex(stamps, _OFFSET, ''), pa.timestamp('us'))
    except pa.ArrowException:
      raise EagrlError(f'{field}: a time is neither a number of hours nor ISO 8601; rewrite the column') from None
    hour[dated] = pc.cast(instant, pa.int64()).to_numpy(zero_copy_only=False) / 3.6e9
  if len(kinds) > 1 or plain.censored:
    raise EagrlError(f'{field}: times are written in several ways (hours, dates, time zones); use one')
  return hour
