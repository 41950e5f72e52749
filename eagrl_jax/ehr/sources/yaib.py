"""YAIB's cohorts (arXiv 2306.05109): `dyn.parquet`, `sta.parquet` and `outc.parquet` in one folder.

dyn has stay_id, time (a duration since admission) and a column a variable; sta stay_id, age and sex, and often
height and weight, which count as measured on admission; outc stay_id and one label a stay. The tables name stays and
no patients: two stays of one patient may come into two splits, unless --config.data.splits says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eagrl_jax.ehr import store, validation
from eagrl_jax.ehr.features import FeatureTable
from eagrl_jax.ehr.records import Cohort
from eagrl_jax.ehr.sources import bounded, bounded_cohort
from eagrl_jax.ehr.sources.bounded import Grid, Steps
from eagrl_jax.ehr.sources.csv_text import PER_HOUR
from eagrl_jax.ehr.sources.yaib_features import FEATURES
from eagrl_jax.types import EagrlError

_NEEDED = {'dyn': ('stay_id', 'time'), 'sta': ('stay_id', 'age', 'sex'), 'outc': ('stay_id', 'label')}
_ON_ADMISSION = ('height', 'weight')
_SEX = {'male': 1, 'm': 1, 'female': 0, 'f': 0}


def load(path: str | Path, *, features: str | Path | None = None, grid: Grid, task: str, setting: str,
         sex_codes: Mapping[str, int] | None = None, labelled: bool = True,
         known: FeatureTable | None = None) -> Cohort:
  """Reads the three tables, of new patients dyn and sta.

  Args:
    path: their folder.
    features: YAML or JSON list of FeatureSpec fields; by default YAIB's 48 variables with height and weight.
    grid: its window_hours count from admission; 0 takes all hours that the tables hold.
    task, setting: see Cohort.
    sex_codes: entry of `sex` -> 1 male, 0 female, -1 unknown; by default male and female.
    labelled: False reads new patients, every stay of dyn or sta: outc is neither needed nor read, and labels are 0.
    known: a run's features; its codes for missing, which few patients do not show, go before anything is averaged.

  Raises:
    EagrlError: tables or columns missing, a label an hour, unknown columns or sexes, more than 1 % of the rows before
      admission.
  """
  folder, steps = Path(path), Steps()
  table = (store.read_features(features) if features else FEATURES).with_sentinels(known)
  schema = {name: _schema(bounded.file(folder, f'{name}.parquet'), needed) for name, needed in _NEEDED.items()
            if labelled or name != 'outc'}
  _refuse_two_kinds(schema)
  source = {name: f"read_parquet({bounded.quoted(folder / f'{name}.parquet')})" for name in schema}
  if not labelled:
    stays = f'SELECT stay_id FROM {source["dyn"]} UNION SELECT stay_id FROM {source["sta"]}'
    source['outc'] = f'(SELECT stay_id, 0 AS label FROM ({stays}) WHERE stay_id IS NOT NULL)'
  with bounded.database() as db, bounded.reading('data.path', folder.name):
    _choose(db, source, schema.get('outc'), steps)
    people = db.execute('SELECT id, label, CAST(age AS DOUBLE) AS age, lower(CAST(sex AS VARCHAR)) AS sex FROM stays '
                        'ORDER BY patient').fetchall()
    codes = {str(k).lower(): v for k, v in (sex_codes or _SEX).items()}
    sex = np.array([-1 if row[3] is None else codes.get(row[3], -2) for row in people], np.int8)
    if (sex == -2).any():
      raise EagrlError(f"data.path: {(sex == -2).sum()} entries of 'sex' in sta.parquet have an unknown code; give "
                       '--config.data.sex_codes=, such as 1=m,2=f')
    per_hour = _hours(schema['dyn'].field('time').type)
    window = f'AND hour < {float(grid.window_hours)}' if grid.window_hours else ''
    late = f'hour >= {float(grid.window_hours)}' if grid.window_hours else 'false'
    for reason, condition in (('before admission', 'hour < 0'), ('after the window', late)):
      steps.append((reason, bounded.count(db, f'FROM (SELECT CAST(time AS DOUBLE) / {per_hour} AS hour FROM '
                                              f'{source["dyn"]}) WHERE {condition}'), 'rows'))
    early, rows = steps[-2][1], bounded.count(db, f'FROM {source["dyn"]}')
    if early > validation.OUTSIDE * rows:
      raise EagrlError(f"data.path: {early} of {rows} rows of dyn.parquet lie before admission; count 'time' from "
                       'admission, or leave those rows out')
    for column in _variables(schema['dyn'], table):
      _add(db, source['dyn'], column, f'CAST(t.time AS DOUBLE) / {per_hour}', table, window)
    for column in _ON_ADMISSION:
      if column in schema['sta'].names and table.find(column) is not None:
        _add(db, source['sta'], column, '0.0', table, window)
    # NaN is missing too. Not asked of the files: of them the database believes the statistics, which leave NaN out.
    bounded.drop(db, 'events', 'isnan(value)')
    return bounded_cohort.cohort(
        db, table, grid, steps, name='yaib', task=task, setting=setting, ids=[str(row[0]) for row in people],
        age=np.array([np.nan if row[2] is None else row[2] for row in people]), sex=sex,
        label=np.array([row[1] for row in people]), labelled=labelled)


def _schema(path: Path, needed: tuple[str, ...]) -> pa.Schema:
  try:
    schema = pq.read_schema(path)
  except (OSError, UnicodeError, pa.ArrowException):
    raise EagrlError(f'data.path: {path.name} is no parquet file, or damaged; get it again') from None
  for column in needed:
    if column not in schema.names:
      raise EagrlError(f'data.path: {path.name} has no column {column!r}; write it as YAIB does')
  used = schema.names if path.stem == 'dyn' else (*needed, *_ON_ADMISSION)
  lower = [name.lower() for name in schema.names]  # as the database tells columns apart
  if twice := [name for name in used if lower.count(name.lower()) > 1]:
    raise EagrlError(f'data.path: {path.name} has two columns {twice[0]!r}; keep one')
  return schema


def _refuse_two_kinds(schema: dict[str, pa.Schema]) -> None:
  """Stays that one table names by text, as '007', and another by numbers do not surely meet."""
  kinds = {name: str(table.field('stay_id').type) for name, table in schema.items()}
  worded = [name for name, kind in kinds.items() if 'string' in kind]
  if worded and len(worded) < len(kinds):
    other = next(name for name in kinds if name not in worded)
    raise EagrlError(f"data.path: 'stay_id' is text in {worded[0]}.parquet and {kinds[other]} in {other}.parquet; "
                     'write it in one way')


def _hours(kind: pa.DataType) -> int:
  if not pa.types.is_duration(kind):
    raise EagrlError(f"data.path: 'time' in dyn.parquet is of type {kind}, whose unit is unknown; write it as a "
                     'duration')
  return PER_HOUR[kind.unit]


def _choose(db: duckdb.DuckDBPyConnection, source: dict[str, str], outc: pa.Schema | None, steps: Steps) -> None:
  """Makes the table `stays`: patient, id, label, age, sex. New patients have no `outc`."""
  if outc is not None and 'time' in outc.names:
    raise EagrlError("data.path: outc.parquet has a label for every 'time'; give a task with one label a stay, such as "
                     'mortality24')
  for name in ('outc', 'sta'):
    repeated = bounded.count(db, f'FROM (SELECT 1 FROM {source[name]} GROUP BY stay_id HAVING count(*) > 1)')
    if repeated:
      raise EagrlError(f'data.path: {repeated} stays stand twice in {name}.parquet; keep one row each')
  wrong = bounded.count(db, f'FROM {source["outc"]} WHERE CAST(label AS DOUBLE) NOT IN (0, 1)')
  if wrong:
    raise EagrlError(f"data.path: {wrong} entries of 'label' in outc.parquet are not 0 or 1; give a yes-or-no task")
  counts = [('read', f'FROM {source["outc"]}', 'patients'),
            ('without label', f'FROM {source["outc"]} WHERE label IS NULL', 'patients'),
            ('read', f'FROM {source["dyn"]}', 'rows'),
            ('of a stay without label', f'FROM {source["dyn"]} WHERE stay_id NOT IN (SELECT stay_id FROM '
                                        f'{source["outc"]} WHERE label IS NOT NULL)', 'rows')]
  steps += [(step, bounded.count(db, rows), unit) for step, rows, unit in counts
            if outc is not None or 'without label' not in step]
  db.execute('CREATE TABLE stays AS SELECT row_number() OVER (ORDER BY o.stay_id) - 1 AS patient, o.stay_id AS id, '
             f'CAST(o.label AS TINYINT) AS label, age, sex FROM {source["outc"]} o LEFT JOIN {source["sta"]} s '
             'USING (stay_id) WHERE o.label IS NOT NULL')


def _variables(dyn: pa.Schema, table: FeatureTable) -> list[str]:
  """The columns of variables; each must be a feature and a number."""
  columns = [name for name in dyn.names if name not in _NEEDED['dyn']]
  for name in columns:
    table.require(name, 'data.path: dyn.parquet')
    kind = dyn.field(name).type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
      raise EagrlError(f'data.path: {name!r} in dyn.parquet is of type {kind}; write numbers')
  return columns


def _add(db: duckdb.DuckDBPyConnection, source: str, column: str, hour: str, table: FeatureTable,
         window: str) -> None:
  """Adds one column's values to `events`; null is missing."""
  name = '"' + column.replace('"', '""') + '"'
  db.execute(f'INSERT INTO events SELECT patient, hour, {table.require(column, "data.path")}, value FROM (SELECT '
             f'patient, {hour} AS hour, single(CAST(t.{name} AS DOUBLE)) AS value FROM {source} t JOIN stays s '
             f'ON t.stay_id = s.id) WHERE value IS NOT NULL AND hour >= 0 {window}')
