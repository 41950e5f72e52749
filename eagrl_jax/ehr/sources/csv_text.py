"""Text of a CSV, or of a parquet file of the same columns, block by block; and its times."""

from __future__ import annotations

import codecs
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from eagrl_jax.ehr import validation
from eagrl_jax.ehr.sources import damage
from eagrl_jax.ehr.sources import headers as headers_lib
from eagrl_jax.types import EagrlError

BLOCK = 16 << 20  # bytes of a CSV read at once
_CELLS = 1 << 20  # of a parquet file
PER_HOUR = {'s': 3600, 'ms': 3_600_000, 'us': 3_600_000_000, 'ns': 3_600_000_000_000}
_EMPTY = ('', 'NA', 'N/A', 'NaN', 'nan', 'null', 'NULL', 'None')
_SODIUM = 'NA'  # the one mark of a missing entry that is also a feature's name
HOURS = {'seconds': 1 / 3600, 'minutes': 1 / 60, 'hours': 1.0, 'days': 24.0}  # of a time that is a number
_LATEST = 1.5e6  # hours: 171 years, for days may be counted from 1900
_OFFSET = r'(?P<offset>[Zz]|[+-][0-9]{2}:?[0-9]{2})$'
_HOUR_OFFSET = r'(:[0-9]{2}(?:\.[0-9]+)?[+-][0-9]{2})$'  # of PostgreSQL: hours alone, behind a time of day
_BELOW_MICROSECONDS = r'(\.[0-9]{6})[0-9]+$'


@dataclasses.dataclass(frozen=True)
class Reading:
  """How a CSV is written."""

  encoding: str = 'utf8'
  delimiter: str = ','
  decimal: str = '.'  # or ','; the other mark is then no part of a number
  time_unit: str = 'hours'  # of times that are numbers, one of HOURS

  def __post_init__(self):
    if self.time_unit not in HOURS:
      raise EagrlError(f'data.time_unit={self.time_unit!r} is unknown; choose one of {", ".join(HOURS)}')
    if len(self.delimiter) != 1 or not self.delimiter.isascii() or self.delimiter in '"\n\r\0':
      raise EagrlError(f'data.delimiter={self.delimiter!r} is not one ASCII character that can separate columns; set '
                       '--config.data.delimiter=, such as ";"')
    try:
      'a'.encode(self.encoding if self.encoding.isprintable() else '')  # a line break is looked up as a space
      codecs.getincrementaldecoder(self.encoding)().decode(pa.py_buffer(b''))  # as a file is read
    except (LookupError, ValueError, AttributeError, TypeError):
      raise EagrlError(f'data.encoding={self.encoding!r} is no encoding of text; set --config.data.encoding=, such as '
                       'utf8') from None


def blocks(path: Path, field: str, wanted: dict[str, bool], reading: Reading, names: str = '',
           times: Sequence[str] = ()) -> Iterator[dict[str, pa.Array]]:
  """The wanted columns as trimmed text, block by block; null where missing.

  Args:
    path: a CSV, or what ends in `.parquet`.
    wanted: header -> required.
    names: the column of feature names, where NA is sodium.
    times: see `record_batches`.
  """
  found: dict[str, str] = {}

  def chosen(headers: list[str]) -> list[str]:
    found.update(_found(headers, path, field, wanted))
    return list(found.values())

  marks = {name: pa.array([m for m in _EMPTY if name != names or m != _SODIUM]) for name in wanted}
  for batch in record_batches(path, field, reading, chosen, times):
    trimmed = {name: pc.utf8_trim_whitespace(batch.column(header)) for name, header in found.items()}
    yield {name: pc.if_else(pc.is_in(column, marks[name]), pa.scalar(None, pa.string()), column)
           for name, column in trimmed.items()}


def _found(headers: list[str], path: Path, field: str, wanted: dict[str, bool]) -> dict[str, str]:
  """Wanted name -> header of the file."""
  plain = {name.strip(): name for name in headers}
  for name in (n for n, required in wanted.items() if required and n not in plain):
    needed = [n for n, required in wanted.items() if required]
    raise EagrlError(f'{field}: {path.name} {headers_lib.lacking(name, plain, needed, wanted, headers_lib.OF_CSV)}')
  for name in wanted:
    headers_lib.check_spelling(name, plain, field, path.name)
  if twice := [name for name in wanted if sum(header.strip() == name for header in headers) > 1]:
    raise EagrlError(f'{field}: {path.name} has two columns {twice[0]!r}; keep one')
  return {name: plain[name] for name in wanted if name in plain}


def record_batches(path: Path, field: str, reading: Reading, chosen: Callable[[list[str]], list[str]] | None = None,
                   times: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
  """Blocks of a CSV or a parquet file, its columns as text; null where empty.

  Args:
    chosen: headers of the file -> those to read; None reads all.
    times: columns that parquet may hold as durations, which become numbers of `reading.time_unit`.
  """
  if not path.is_file():
    raise EagrlError(f'{field}: there is no file {path.name}')
  if path.suffix == '.parquet':
    yield from _parquet(path, field, reading, chosen, times)
  else:
    yield from _csv(path, field, reading, chosen)


def _csv(path: Path, field: str, reading: Reading,
         chosen: Callable[[list[str]], list[str]] | None) -> Iterator[pa.RecordBatch]:
  # One thread: Arrow names the row of an error only then.
  read = pacsv.ReadOptions(encoding=reading.encoding, block_size=BLOCK, use_threads=False)
  parse = pacsv.ParseOptions(delimiter=reading.delimiter, newlines_in_values=True)
  try:
    headers = pacsv.open_csv(path, read, parse).schema.names
    convert = pacsv.ConvertOptions(
        include_columns=chosen(headers) if chosen else None, column_types={h: pa.string() for h in headers},
        strings_can_be_null=True, null_values=[''])
    swallowed = rf'[\r\n][^\r\n]*{re.escape(reading.delimiter)}'  # a row, behind a quote that nobody closed
    for batch in pacsv.open_csv(path, read, parse, convert):
      for name, column in zip(batch.schema.names, batch.columns):
        if pc.any(pc.match_substring_regex(column, swallowed)).as_py():
          header = name.strip().partition('\n')[0]  # what follows would be rows
          raise EagrlError(f'{field}: {path.name} has a row inside an entry of {header!r}; close the quote before it')
      yield batch
  except (pa.ArrowException, OSError, UnicodeError, LookupError) as error:
    row = re.search(r'Row #(\d+)', str(error))  # the rest of Arrow's message quotes the row
    where = damage.where(path, reading.encoding) or (f' at row {row[1]}' if row else '')
    raise EagrlError(f'{field}: {path.name} is not a CSV in {reading.encoding} separated by {reading.delimiter!r}'
                     f'{where}; check the file, --config.data.encoding and --config.data.delimiter') from None


def _parquet(path: Path, field: str, reading: Reading, chosen: Callable[[list[str]], list[str]] | None,
             times: Sequence[str]) -> Iterator[pa.RecordBatch]:
  """Columns of any simple type, such as a MEDS label file has: numbers, texts, true or false, times."""
  try:
    with pq.ParquetFile(path) as file:
      if not file.schema_arrow.names:
        raise EagrlError(f'{field}: {path.name} holds no columns; check the file')
      headers = chosen(file.schema_arrow.names) if chosen else None
      read = [column for column in file.schema_arrow if headers is None or column.name in headers]
      if spans := [c for c in read if pa.types.is_duration(c.type) and c.name.strip() not in times]:
        raise EagrlError(f'{field}: {spans[0].name!r} in {path.name} is of type {spans[0].type}, which has no unit as '
                         'a value; write numbers')
      for batch in file.iter_batches(max(1, _CELLS // max(1, len(read))), columns=headers):
        yield pa.RecordBatch.from_arrays([_text(column, reading) for column in batch.columns], batch.schema.names)
  except (pa.ArrowException, OSError, UnicodeError) as error:
    raise EagrlError(f'{field}: {path.name} is not a parquet file of plain columns'
                     f' ({type(error).__name__}); check the file') from None


def _text(column: pa.Array, reading: Reading) -> pa.Array:
  """A column of parquet as a CSV would have it: durations in its unit of time, instants in UTC, its decimal mark.

  NaN is null: a wide table is full of it.
  """
  kind = column.type
  if pa.types.is_duration(kind):
    ticks = pc.cast(pc.cast(column, pa.int64()), pa.float64(), safe=False)
    column = pc.divide(ticks, PER_HOUR[kind.unit] * HOURS[reading.time_unit])
  elif pa.types.is_timestamp(kind) and kind.tz:  # the offset of a place changes with summer
    column = pc.cast(column, pa.timestamp(kind.unit, 'UTC'))
  elif pa.types.is_floating(kind):
    column = pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column)
  text = pc.cast(column, pa.string())
  return pc.replace_substring(text, '.', ',') if reading.decimal == ',' and _is_number(column.type) else text


def _is_number(kind: pa.DataType) -> bool:
  return pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def hours(text: pa.Array, kinds: set[str], field: str, reading: Reading) -> np.ndarray:
  """Times as hours on the file's own clock; `kinds` collects how times are written and must keep one member.

  Args:
    field: of the config, for errors.
  """
  plain = validation.parse_numbers(text, reading.decimal)
  empty = pc.is_null(text).to_numpy(zero_copy_only=False)
  numeric = ~np.isnan(plain.value)
  hour = plain.value * HOURS[reading.time_unit]
  if numeric.any():
    kinds.add('hours')
    if np.nanmax(np.abs(hour)) > _LATEST:
      raise EagrlError(f'{field}: a number is too large for {reading.time_unit}; set --config.data.time_unit= '
                       f'({", ".join(HOURS)}), or give ISO 8601 instead of dates written as numbers')
  dated = ~numeric & ~empty
  if dated.any():
    stamps = pc.replace_substring_regex(text.filter(pa.array(dated)), _HOUR_OFFSET, r'\1:00')
    offset = pc.struct_field(pc.extract_regex(stamps, _OFFSET), 'offset')
    kinds |= {'no zone' if o is None else o.upper() for o in pc.unique(offset).to_pylist()}
    try:
      plainly = pc.replace_substring_regex(pc.replace_substring_regex(stamps, _OFFSET, ''), _BELOW_MICROSECONDS, r'\1')
      instant = pc.cast(plainly, pa.timestamp('us'))
    except pa.ArrowException:
      raise EagrlError(f'{field}: a time is neither a number nor ISO 8601; rewrite the column') from None
    hour[dated] = pc.cast(instant, pa.int64()).to_numpy(zero_copy_only=False) / 3.6e9
  if len(kinds) > 1 or plain.censored:
    raise EagrlError(f'{field}: times are written in several ways (numbers, dates, time zones); use one')
  return hour
