"""Bounded memory: rows too many for memory go through a database file; what comes back is one value a visit.

A source fills the table `events`, in a feature's own unit; `bounded_cohort` judges it and makes the cohort. Memory then
grows with patients x visits x features and with what is dropped, not with rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import duckdb

from eagrl_jax.ehr import units
from eagrl_jax.ehr.features import FeatureSpec, is_word, plain_unit
from eagrl_jax.ehr.sources import damage
from eagrl_jax.types import EagrlError

Steps = list[tuple[str, int, str]]

_MEMORY = '1GB'  # of the database; its temporary files take the rest
_NO_UNIT = ('', 'unk', 'none', 'units', 'na', 'n/a')


@dataclasses.dataclass(frozen=True)
class Grid:
  """How events become visits; the same numbers as `records.to_visits` is given."""

  bin_hours: float
  aggregate: str = 'mean'  # 'mean' | 'last'; of several values at one time the mean
  window_hours: float = 0.0  # 0 = the whole record


@contextlib.contextmanager
def database() -> Iterator[duckdb.DuckDBPyConnection]:
  """A database in a temporary folder (that of TMPDIR), with the empty table `events`.

  Hours and values are those that a cohort holds in memory, to the bit: what is one time or one value there is one here.
  `single` makes such a number of another; what it cannot hold becomes infinite. One thread: the sums behind a mean then
  never depend on scheduling. UTC: a time with a zone never depends on where the machine stands.
  """
  with tempfile.TemporaryDirectory(prefix='cohort-') as folder:
    db = duckdb.connect(f'{folder}/rows.db', config={
        'memory_limit': _MEMORY, 'temp_directory': folder, 'threads': 1, 'preserve_insertion_order': False,
        'autoinstall_known_extensions': False, 'TimeZone': 'UTC'})
    try:
      db.execute(f'SET enable_progress_bar = {sys.stdout.isatty()}')
      db.execute('CREATE TABLE events (patient INTEGER, hour FLOAT, feature SMALLINT, value FLOAT)')
      db.execute("CREATE MACRO single(x) AS coalesce(TRY_CAST(x AS FLOAT), sign(x) * CAST('inf' AS FLOAT))")
      yield db
    finally:
      db.close()


@contextlib.contextmanager
def reading(field: str, name: str, fix: str = 'get the file again', path: Path | None = None) -> Iterator[None]:
  """Turns what the database says of a file, which quotes its rows, into one line that does not.

  `path` is that of a text file, in which the damaged byte can be found.
  """
  try:
    yield
  except duckdb.Error as error:
    text = str(error)
    if isinstance(error, duckdb.OutOfMemoryException) or 'No space left' in text:
      raise EagrlError(f'{field}: {name}: no space left for temporary files; set TMPDIR to a larger disk') from None
    line = re.search(r'[Ll]ine: (\d+)', text)
    where = (path and damage.where(path, 'utf8')) or (f' at line {line[1]}' if line else '')
    raise EagrlError(f'{field}: {name} is damaged or holds something unreadable{where}; {fix}') from None


def quoted(text: object) -> str:
  """An SQL string."""
  return "'" + str(text).replace("'", "''") + "'"


def count(db: duckdb.DuckDBPyConnection, rest: str) -> int:
  """How many rows; `rest` is the query from FROM on."""
  row = db.execute(f'SELECT count(*) {rest}').fetchone()
  return int(row[0]) if row else 0


def drop(db: duckdb.DuckDBPyConnection, table: str, condition: str) -> int:
  """Deletes these rows; how many there were."""
  gone = count(db, f'FROM {table} WHERE {condition}')
  db.execute(f'DELETE FROM {table} WHERE {condition}')
  return gone


def no_unit(unit: str | None) -> bool:
  """Whether an entry says that there is none, in one of the ways in which files say it."""
  return plain_unit(unit or '') in _NO_UNIT


def conversion(spec: FeatureSpec, unit: str | None, field: str) -> tuple[float, float]:
  """(scale, offset) from a declared unit to the feature's own; without a unit, the feature's own is meant.

  Raises:
    EagrlError: a unit that the feature does not accept.
  """
  if unit is None or no_unit(unit):
    return 1.0, 0.0
  if (found := units.into(spec, unit)) is not None:
    return found
  shown = repr(unit) if is_word(unit) and len(unit) <= 20 else 'what is no unit'
  raise EagrlError(f'{field}: {spec.name!r} occurs in {shown}, which its spec in {spec.unit!r} does not accept; '
                   'add it to accepted_units')


def file(folder: Path, *names: str) -> Path:
  """The first of these files that a folder holds.

  Raises:
    EagrlError: none of them is there.
  """
  for name in names:
    if (folder / name).is_file():
      return folder / name
  raise EagrlError(f'data.path: {folder.name} holds no {names[0]}; give the folder that does')
