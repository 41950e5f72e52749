"""Bounded memory: rows too many for memory go through a database file; what comes back is one value a visit.

A source fills the table `events`, in a feature's own unit, and `collect` drops and counts impossible
values before anything is averaged. Memory then grows with patients x visits x features, not with rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np

from eagrl_jax.ehr import validation
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.records import Cohort, hashed_order
from eagrl_jax.types import EagrlError

Steps = list[tuple[str, int, str]]

_MEMORY = '1GB'  # of the database; its temporary files take the rest
_NO_UNIT = ('', 'unk', 'none', 'units', 'na', 'n/a')
_GOOD = 'isfinite(value) AND NOT coded AND value BETWEEN low AND high'


@dataclasses.dataclass(frozen=True)
class Grid:
  """How events become visits; the same numbers as `records.to_visits` is given."""

  bin_hours: float
  aggregate: str = 'mean'  # 'mean' | 'last'; of several values at one time the mean
  window_hours: float = 0.0  # 0 = the whole record


@contextlib.contextmanager
def database() -> Iterator[duckdb.DuckDBPyConnection]:
  """A database in a temporary folder (that of TMPDIR), with the empty table `events`.

  One thread: the sums behind a mean then never depend on scheduling.
  """
  with tempfile.TemporaryDirectory(prefix='cohort-') as folder:
    db = duckdb.connect(f'{folder}/rows.db', config={
        'memory_limit': _MEMORY, 'temp_directory': folder, 'threads': 1, 'preserve_insertion_order': False,
        'autoinstall_known_extensions': False})
    try:
      db.execute('CREATE TABLE events (patient INTEGER, hour DOUBLE, feature SMALLINT, value DOUBLE)')
      yield db
    finally:
      db.close()


@contextlib.contextmanager
def reading(field: str, name: str, fix: str = 'get the file again') -> Iterator[None]:
  """Turns what the database says of a file, which quotes its rows, into one line that does not."""
  try:
    yield
  except duckdb.Error as error:
    text = str(error)
    if isinstance(error, duckdb.OutOfMemoryException) or 'No space left' in text:
      raise EagrlError(f'{field}: {name}: no space left for temporary files; set TMPDIR to a larger disk') from None
    line = re.search(r'[Ll]ine: (\d+)', text)
    where = f' at line {line[1]}' if line else ''
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


def plain_unit(unit: str) -> str:
  return unit.replace('µ', 'u').replace('μ', 'u').replace('°', 'deg').replace(' ', '').lower()


def no_unit(unit: str | None) -> bool:
  """Whether an entry says that there is none, in one of the ways in which files say it."""
  return plain_unit(unit or '') in _NO_UNIT


def conversion(spec: FeatureSpec, unit: str | None, field: str) -> tuple[float, float]:
  """(scale, offset) from a declared unit to the feature's own; without a unit, the feature's own is meant.

  Raises:
    EagrlError: a unit that the feature does not accept.
  """
  given = plain_unit(unit or '')
  if no_unit(unit) or given == plain_unit(spec.unit):
    return 1.0, 0.0
  for other, scale, offset in spec.accepted_units:
    if given == plain_unit(other):
      return scale, offset
  shown = repr(unit) if not re.match(r'^[\W\d_]*$|^\d{4}-\d\d', unit or '') and len(given) <= 20 else 'what is no unit'
  raise EagrlError(f'{field}: {spec.name!r} occurs in {shown}, which its spec in {spec.unit!r} does not accept; '
                   'add it to accepted_units')


def collect(db: duckdb.DuckDBPyConnection, features: FeatureTable, grid: Grid,
            steps: Steps) -> dict[str, np.ndarray]:
  """One row a patient, visit and feature out of `events`: patient, hour of the visit's last value, feature, value.

  Raises:
    EagrlError: a feature's values lie outside its hard range, or fit another unit better.
  """
  low, high = validation.hard_limits(features)
  db.execute('CREATE TABLE ranges (feature SMALLINT, low DOUBLE, high DOUBLE, sentinels DOUBLE[])')
  db.executemany('INSERT INTO ranges VALUES (?, ?, ?, ?)', [
      (f, float(low[f]), float(high[f]), list(spec.sentinels)) for f, spec in enumerate(features)])
  db.execute('CREATE VIEW judged AS SELECT e.*, low, high, list_contains(sentinels, value) AS coded '
             'FROM events e JOIN ranges USING (feature)')
  _refuse_and_count(db, features, steps)
  visit = f'floor(hour / {float(grid.bin_hours)})'
  latest = f'SELECT patient, feature, max(hour) AS hour, avg(value) AS value FROM judged WHERE {_GOOD} ' \
           f'GROUP BY patient, feature, {visit}'
  if grid.aggregate == 'last':
    latest = f'SELECT patient, feature, hour, avg(j.value) AS value FROM judged j JOIN ({latest}) ' \
             f'USING (patient, feature, hour) WHERE {_GOOD.replace("value", "j.value")} GROUP BY patient, feature, hour'
  with reading('data.path', 'the temporary database'):
    found = db.execute(latest).fetchnumpy()
  return {'patient': np.asarray(found['patient'], np.int32), 'hour': np.asarray(found['hour'], np.float32),
          'feature': np.asarray(found['feature'], np.int16), 'value': np.asarray(found['value'], np.float32)}


def _refuse_and_count(db: duckdb.DuckDBPyConnection, features: FeatureTable, steps: Steps) -> None:
  outside = f'isfinite(value) AND NOT coded AND NOT ({_GOOD})'
  counts = db.execute(
      f'SELECT feature, count(*), count(*) FILTER (NOT isfinite(value)), count(*) FILTER (isfinite(value) AND coded), '
      f'count(*) FILTER ({outside}) FROM judged GROUP BY feature ORDER BY feature').fetchall()
  steps.append(('read', sum(row[1] for row in counts), 'values'))
  for f, total, infinite, coded, wrong in counts:
    spec = features[f]
    usable = total - infinite - coded
    for unit, scale, offset in spec.accepted_units if usable >= 20 and wrong > 0.2 * usable else ():
      fits = db.execute(f'SELECT count(*) FROM judged WHERE feature = {f} AND {outside} AND '
                        f'value * {float(scale)} + {float(offset)} BETWEEN low AND high').fetchone()
      if unit != spec.unit and fits and fits[0] > 0.8 * wrong:
        raise EagrlError(f'features: {wrong} of {usable} values of {spec.name!r} are impossible in {spec.unit!r} but '
                         f'possible in {unit!r}; give the unit of each value')
    if usable >= 20 and wrong > 0.5 * usable:
      raise EagrlError(f'features: {wrong} of {usable} values of {spec.name!r} lie outside its hard range; check its '
                       'unit and specimen')
    for step, count in (('not finite', infinite), ('code for missing', coded), ('outside hard range', wrong)):
      if count:
        steps.append((f'{step}: {spec.name}', count, 'values'))


def cohort(db: duckdb.DuckDBPyConnection, features: FeatureTable, grid: Grid, steps: Steps, *, name: str, task: str,
           setting: str, ids: list[str], age: np.ndarray, sex: np.ndarray, label: np.ndarray) -> Cohort:
  """The validated cohort of the patients with these ids, whose places in the list are their numbers in `events`."""
  found = collect(db, features, grid, steps)
  steps.append((f'after binning to {grid.bin_hours:g} h', len(found['value']), 'values'))
  made = Cohort(name=name, task=task, setting=setting, features=features, subject_id=np.array(ids, str),
                age=np.asarray(age, np.float32), sex=np.asarray(sex, np.int8), label=np.asarray(label, np.int8),
                patient=found['patient'], hour=found['hour'], feature=found['feature'], value=found['value'],
                attrition=tuple(steps))
  made = validation.validate(made.take(hashed_order(made.subject_id, name)))
  validation.check(made)
  return made


def file(folder: Path, *names: str) -> Path:
  """The first of these files that a folder holds.

  Raises:
    EagrlError: none of them is there.
  """
  for name in names:
    if (folder / name).is_file():
      return folder / name
  raise EagrlError(f'data.path: {folder.name} holds no {names[0]}; give the folder that does')
