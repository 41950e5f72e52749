"""Bounded memory: rows too many for memory go through a database file; what comes back is one value a visit.

A source fills the table `events`, in a feature's own unit, and `collect` drops and counts impossible and
contradictory values before anything is averaged. Memory then grows with patients x visits x features and with what is
dropped, not with rows.
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

from eagrl_jax.ehr import crossfield, sentinels, units, validation
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable, plain_unit
from eagrl_jax.ehr.records import Cohort, Rejects, hashed_order
from eagrl_jax.ehr.sources import damage
from eagrl_jax.types import EagrlError

Steps = list[tuple[str, int, str]]

_MEMORY = '1GB'  # of the database; its temporary files take the rest
_NO_UNIT = ('', 'unk', 'none', 'units', 'na', 'n/a')
_GOOD = 'isfinite(value) AND NOT coded AND value BETWEEN low AND high AND known'


@dataclasses.dataclass(frozen=True)
class Grid:
  """How events become visits; the same numbers as `records.to_visits` is given."""

  bin_hours: float
  aggregate: str = 'mean'  # 'mean' | 'last'; of several values at one time the mean
  window_hours: float = 0.0  # 0 = the whole record


@contextlib.contextmanager
def database() -> Iterator[duckdb.DuckDBPyConnection]:
  """A database in a temporary folder (that of TMPDIR), with the empty table `events`.

  One thread: the sums behind a mean then never depend on scheduling. UTC: a time with a zone never depends on where
  the machine stands.
  """
  with tempfile.TemporaryDirectory(prefix='cohort-') as folder:
    db = duckdb.connect(f'{folder}/rows.db', config={
        'memory_limit': _MEMORY, 'temp_directory': folder, 'threads': 1, 'preserve_insertion_order': False,
        'autoinstall_known_extensions': False, 'TimeZone': 'UTC'})
    try:
      db.execute('CREATE TABLE events (patient INTEGER, hour DOUBLE, feature SMALLINT, value DOUBLE)')
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
  shown = repr(unit) if not re.match(r'^[\W\d_]*$|^\d{4}-\d\d', unit) and len(unit) <= 20 else 'what is no unit'
  raise EagrlError(f'{field}: {spec.name!r} occurs in {shown}, which its spec in {spec.unit!r} does not accept; '
                   'add it to accepted_units')


def collect(db: duckdb.DuckDBPyConnection, features: FeatureTable, grid: Grid, steps: Steps,
            judge_features: bool = True) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """One row a patient, visit and feature out of `events`: patient, hour of the visit's last value, feature, value.

  And the events that were not used: patient, hour, feature, value, reason. `judge_features`: see `validation.validate`.

  Raises:
    EagrlError: a feature's values lie outside its hard range, or fit another unit better.
  """
  for spec in features:
    if spec.repeats == 'last':
      raise EagrlError(f'features: {spec.name!r}: repeats last needs the order of a csv or wide_csv, which this source '
                       'does not have; use mean')
  _rescale(db, features, steps)
  low, high = validation.hard_limits(features)
  db.execute('CREATE TABLE ranges (feature SMALLINT, low DOUBLE, high DOUBLE, sentinels DOUBLE[], levels DOUBLE[])')
  db.executemany('INSERT INTO ranges VALUES (?, ?, ?, ?, ?)', [
      (f, float(low[f]), float(high[f]), list(spec.sentinels), [level for level, _ in spec.levels] or None)
      for f, spec in enumerate(features)])
  db.execute('CREATE VIEW judged AS SELECT e.*, low, high, list_contains(sentinels, value) AS coded, '
             'levels IS NULL OR list_contains(levels, value) AS known FROM events e JOIN ranges USING (feature)')
  db.execute('CREATE TABLE rejects (patient INTEGER, hour DOUBLE, feature SMALLINT, value DOUBLE, reason VARCHAR)')
  _refuse_and_count(db, features, steps, judge_features)
  if judge_features:
    _unlisted_codes(db, features, steps)
  _contradictions(db, features, steps)
  visit = f'floor(hour / {float(grid.bin_hours)})'
  latest = f'SELECT patient, feature, max(hour) AS hour, avg(value) AS value FROM judged WHERE {_GOOD} ' \
           f'GROUP BY patient, feature, {visit}'
  if grid.aggregate == 'last':
    latest = f'SELECT patient, feature, hour, avg(j.value) AS value FROM judged j JOIN ({latest}) ' \
             f'USING (patient, feature, hour) WHERE {_GOOD.replace("value", "j.value")} GROUP BY patient, feature, hour'
  with reading('data.path', 'the temporary database'):
    found = db.execute(latest).fetchnumpy()
    aside = db.execute('SELECT * FROM rejects ORDER BY patient, hour, feature').fetchnumpy()
  kinds = {'patient': np.int32, 'hour': np.float32, 'feature': np.int16, 'value': np.float32, 'reason': object}
  return ({k: np.asarray(found[k], kinds[k]) for k in found}, {k: np.asarray(aside[k], kinds[k]) for k in aside})


def _rescale(db: duckdb.DuckDBPyConnection, features: FeatureTable, steps: Steps) -> None:
  for f, spec in enumerate(features):
    ranges = [f'value BETWEEN {float(low)} AND {float(high)}' for low, high, *_ in spec.rescale]
    for i, (low, high, *_) in enumerate(spec.rescale):  # the first that holds decides
      before = ''.join(f' AND NOT {r}' for r in ranges[:i])
      if converted := count(db, f'FROM events WHERE feature = {f} AND {ranges[i]}{before}'):
        steps.append((f'converted from {low:g} to {high:g}: {spec.name}', converted, 'values'))
    if ranges:
      cases = ' '.join(f'WHEN {r} THEN {float(scale)} * value + {float(offset)}'
                       for r, (_, _, scale, offset) in zip(ranges, spec.rescale))
      db.execute(f'UPDATE events SET value = CASE {cases} ELSE value END WHERE feature = {f}')


def _unlisted_codes(db: duckdb.DuckDBPyConnection, features: FeatureTable, steps: Steps) -> None:
  """What `sentinels` finds, before a code is averaged with values."""
  rows = db.execute(f'SELECT feature, count(*) FROM judged WHERE {_GOOD} GROUP BY feature ORDER BY feature').fetchall()
  for f, total in rows:
    if total < validation.ENOUGH or features[f].levels:
      continue
    low, high = (db.execute(f'SELECT value, count(*) FROM judged WHERE {_GOOD} AND feature = {f} GROUP BY value '
                            f'ORDER BY value {order} LIMIT {sentinels.EDGES}').fetchall() for order in ('ASC', 'DESC'))
    codes, odd = sentinels.suspected(low, high, total)
    for step, found in ((sentinels.CODE, codes), (sentinels.ODD, odd)):
      here = f'feature = {f} AND value IN ({", ".join(map(repr, found))})'
      if found:
        steps.append((f'{step}: {features[f].name}', count(db, f'FROM judged WHERE {_GOOD} AND {here}'), 'values'))
      if found and step == sentinels.CODE:
        db.execute(f'INSERT INTO rejects SELECT patient, hour, feature, value, ? FROM judged WHERE {_GOOD} AND {here}',
                   [step])
        db.execute(f'DELETE FROM events WHERE {here}')


def _contradictions(db: duckdb.DuckDBPyConnection, features: FeatureTable, steps: Steps) -> None:
  """The rules of `crossfield`, before values are averaged over a visit."""
  found = list(crossfield.applicable(features))
  for i, (rule, roles) in enumerate(found):
    columns = ', '.join(f'avg(value) FILTER (feature = {f}) AS r{r}' for r, f in enumerate(roles))
    all_there = ' AND '.join(f'r{r} IS NOT NULL' for r in range(len(roles)))
    db.execute(f'CREATE TABLE wrong{i} AS SELECT * FROM (SELECT patient, hour, {columns} FROM judged WHERE {_GOOD} AND '
               f'feature IN ({", ".join(map(str, roles))}) GROUP BY patient, hour) WHERE {all_there} AND {rule.sql}')
    if moments := count(db, f'FROM wrong{i}'):
      steps.append((rule.reason, moments, 'values'))
  for i, (rule, roles) in enumerate(found):  # all are judged before any goes
    mine = f'feature IN ({", ".join(str(roles[r]) for r in rule.aside)}) AND (patient, hour) IN ' \
           f'(SELECT (patient, hour) FROM wrong{i})'
    db.execute(f'INSERT INTO rejects SELECT patient, hour, feature, value, ? FROM judged WHERE {_GOOD} AND {mine}',
               [rule.reason])
    db.execute(f'DELETE FROM events WHERE {mine}')


def _refuse_and_count(db: duckdb.DuckDBPyConnection, features: FeatureTable, steps: Steps,
                      judge_features: bool) -> None:
  inside = 'isfinite(value) AND NOT coded AND value BETWEEN low AND high'
  outside = 'isfinite(value) AND NOT coded AND NOT (value BETWEEN low AND high)'
  counts = db.execute(
      f'SELECT feature, count(*), count(*) FILTER (NOT isfinite(value)), count(*) FILTER (isfinite(value) AND coded), '
      f'count(*) FILTER ({outside}), count(*) FILTER ({inside} AND NOT known) FROM judged GROUP BY feature '
      'ORDER BY feature').fetchall()
  steps.append(('read', sum(row[1] for row in counts), 'values'))
  db.execute(f'''
      INSERT INTO rejects SELECT patient, hour, feature, value,
        CASE WHEN NOT isfinite(value) THEN 'not finite' WHEN coded THEN 'code for missing'
          WHEN NOT (value BETWEEN low AND high) THEN 'outside hard range' ELSE {quoted(validation.NO_LEVEL)} END
      FROM judged WHERE NOT ({_GOOD})''')
  for f, total, infinite, coded, wrong, stray in counts:
    spec = features[f]
    usable = total - infinite - coded
    validation.refuse_wrong_unit(spec, usable, wrong, lambda scale, offset: count(
        db, f'FROM judged WHERE feature = {f} AND {outside} AND '
            f'value * {float(scale)} + {float(offset)} BETWEEN low AND high'))
    for step, gone in (('not finite', infinite), ('code for missing', coded), ('outside hard range', wrong),
                       (validation.NO_LEVEL, stray)):
      if gone:
        steps.append((f'{step}: {spec.name}', gone, 'values'))
    if judge_features and validation.mixes_specimens(spec, usable, wrong):
      good = f'FROM judged WHERE feature = {f} AND {_GOOD}'
      steps.append((f'not used until features give its specimen: {spec.name}', count(db, good), 'values'))
      db.execute('INSERT INTO rejects SELECT patient, hour, feature, value, '
                 f'{quoted(validation.NO_SPECIMEN)} {good}')
      db.execute(f'DELETE FROM events WHERE feature = {f}')


@np.errstate(over='ignore')  # what float32 cannot hold becomes infinite, and is counted as not finite
def cohort(db: duckdb.DuckDBPyConnection, features: FeatureTable, grid: Grid, steps: Steps, *, name: str, task: str,
           setting: str, ids: list[str], age: np.ndarray, sex: np.ndarray, label: np.ndarray,
           stay_end: np.ndarray | None = None, labelled: bool = True) -> Cohort:
  """The validated cohort of the patients with these ids, whose places in the list are their numbers in `events`."""
  found, aside = collect(db, features, grid, steps, labelled)
  steps.append((f'after binning to {grid.bin_hours:g} h', len(found['value']), 'values'))
  made = Cohort(name=name, task=task, setting=setting, features=features, subject_id=np.array(ids, str),
                age=np.asarray(age, np.float32), sex=np.asarray(sex, np.int8), label=np.asarray(label, np.int8),
                patient=found['patient'], hour=found['hour'], feature=found['feature'], value=found['value'],
                attrition=tuple(steps), stay_end=stay_end, rejects=Rejects(
                    np.array(ids, object)[aside['patient']], aside['hour'],
                    np.array(features.names, object)[aside['feature']], aside['value'], aside['reason']))
  # Values are a visit's now, each with an hour of its own: that two share one says nothing any more.
  made = validation.validate(made.take(hashed_order(made.subject_id, name)), at_one_time=False, judge_features=labelled,
                             rescaled=True)
  validation.check(made, labelled)
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
