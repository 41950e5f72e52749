"""MIMIC-IV 2.x and 3.x as released: `hosp/` and `icu/`, CSV or CSV.GZ (doi 10.13026/kpb9-mt58, credentialed).

One pass over chartevents and one over labevents, by SQL in bounded memory. `mimic4_stays` says which stays and
labels, `mimic4_features` which items. A value counts when it was charted and stored inside the window.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from eagrl_jax.ehr.features import FeatureTable
from eagrl_jax.ehr.records import Cohort
from eagrl_jax.ehr.sources import bounded, bounded_cohort, mimic4_stays
from eagrl_jax.ehr.sources.bounded import Grid, Steps
from eagrl_jax.ehr.sources.mimic4_features import CHART, FEATURES, FRACTION, GCS, LAB, Item
from eagrl_jax.types import EagrlError

_TABLES = {'hosp/admissions': mimic4_stays.ADMISSIONS, 'hosp/patients': mimic4_stays.PATIENTS,
           'icu/icustays': mimic4_stays.ICUSTAYS}
_EVENTS = ('subject_id', 'charttime', 'itemid', 'value', 'valuenum', 'valueuom')
_AHEAD = 24  # hours before the stay in which what is asked on admission, height and weight, is taken to be of it
# SQL over charted, stored, i.ahead, s.start, s.cut, w.text, w.level and number; the first that holds decides. Charts
# have whole minutes and stays seconds: what is charted in a stay's first minute is not before it.
# Rows outside the window are those of a patient's other days and stays, as many as there are: no sign of a wrong clock.
_FATES = (('without a time', 'charted IS NULL'),
          ('before the stay', "charted < date_trunc('minute', s.start) - i.ahead"),
          ('after the window', 'charted >= s.cut'), ('charted in the window, stored after it', 'stored > s.cut'),
          ('not assessed: no verbal response behind a tube', 'w.text IS NOT NULL AND w.level IS NULL'),
          ('without a number', 'number IS NULL'))


def load(path: str | Path, *, task: str, index: str, grid: Grid, labelled: bool = True,
         known: FeatureTable | None = None) -> Cohort:
  """Reads the folder that holds `hosp` and `icu`.

  Args:
    task, index: see `mimic4_stays`.
    grid: visits; its window_hours 0 is the published window, the days up to the end of the stay.
    labelled: False reads new patients: no column that tells the outcome is needed or read, and labels are 0.
    known: a run's features; its codes for missing, which few patients do not show, go before anything is averaged.

  Returns:
    A validated cohort of one stay a patient. Hours count from the stay's start, or from the midnight before it
    in the published window.

  Raises:
    EagrlError: files or columns missing, damaged files, a unit that no spec accepts; a window that the outcome ends.
  """
  folder = Path(path)
  steps: Steps = []
  unread = () if labelled else mimic4_stays.outcome_columns(task, index, grid.window_hours)
  with bounded.database() as db:
    for name, columns in _TABLES.items():
      source, _ = _csv(db, folder, name, tuple(c for c in columns if c not in unread))
      read = ', '.join(f'NULL::VARCHAR AS {c}' if c in unread else c for c in columns)
      with bounded.reading('data.path', f'{name}.csv', path=_file(folder, name)):
        db.execute(f'CREATE TABLE {Path(name).name} AS SELECT {read} FROM {source}')
    stays = mimic4_stays.choose(db, task, index, grid.window_hours, steps, labelled)
    for name, items in (('icu/chartevents', CHART), ('hosp/labevents', LAB)):
      _read(db, folder, name, items, steps)
    _add_gcs_total(db)
    return bounded_cohort.cohort(
        db, FEATURES.with_sentinels(known), grid, steps,
        name=f'mimic4_{index}_{"first" if grid.window_hours else "last_days"}', task=task,
        setting=mimic4_stays.setting(index, grid.window_hours), ids=stays.ids, age=stays.age, sex=stays.sex,
        label=stays.label, stay_end=stays.end, labelled=labelled)


def _file(folder: Path, name: str) -> Path:
  return bounded.file(folder, f'{name}.csv.gz', f'{name}.csv')


def _csv(db: duckdb.DuckDBPyConnection, folder: Path, name: str, columns: tuple[str, ...]) -> tuple[str, set[str]]:
  """An SQL source of a table's text, once its header is checked; and the columns it has."""
  found = _file(folder, name)
  source = f"read_csv({bounded.quoted(found)}, header=true, all_varchar=true, delim=',', quote='\"', escape='\"')"
  with bounded.reading('data.path', found.name, path=found):
    have = {row[0] for row in db.execute(f'DESCRIBE SELECT * FROM {source}').fetchall()}
  for column in columns:
    if column not in have:
      raise EagrlError(f'data.path: {found.name} has no column {column!r}; get MIMIC-IV 2.0 or later')
  return source, have


def _read(db: duckdb.DuckDBPyConnection, folder: Path, name: str, items: tuple[Item, ...], steps: Steps) -> None:
  """Adds the chosen stays' values of these items to `events`."""
  table = Path(name).name
  source, have = _csv(db, folder, name, _EVENTS)
  db.execute(f'CREATE TABLE {table}_items (itemid VARCHAR, worded BOOLEAN, ahead INTERVAL)')
  asked = {spec.name for spec in FEATURES if spec.group == 'admission'}
  db.executemany(f'INSERT INTO {table}_items SELECT ?, ?, to_hours(?)', [
      (str(i.itemid), bool(i.words), _AHEAD if i.feature in asked else 0) for i in items])
  db.execute(f'CREATE TABLE {table}_words (itemid VARCHAR, text VARCHAR, level DOUBLE)')
  words = [(str(i.itemid), text.lower(), level) for i in items
           for text, level in (*i.words, *((text, None) for text in i.not_assessed))]
  if words:
    db.executemany(f'INSERT INTO {table}_words VALUES (?, ?, ?)', words)
  fate = ' '.join(f'WHEN {condition} THEN {i}' for i, (_, condition) in enumerate(_FATES))
  # The database file holds what is left of the one pass; only then are units known, and converted.
  with bounded.reading('data.path', f'{table}.csv', path=_file(folder, name)):
    db.execute(f'''
        CREATE TABLE {table} AS
        SELECT s.patient, e.itemid, lower(trim(e.valueuom)) AS unit, CASE {fate} ELSE -1 END AS fate, number,
          greatest(0, date_diff('microsecond', s.origin, charted)) / 3.6e9 AS hour
        FROM (SELECT *, TRY_CAST(charttime AS TIMESTAMP) AS charted,
                {'TRY_CAST(storetime AS TIMESTAMP)' if 'storetime' in have else 'NULL'} AS stored FROM {source}) e
        JOIN {table}_items i USING (itemid) JOIN stays s USING (subject_id)
        LEFT JOIN {table}_words w ON w.itemid = e.itemid AND w.text = lower(trim(e.value)),
        LATERAL (SELECT CASE WHEN i.worded OR w.text IS NOT NULL THEN w.level
                          ELSE TRY_CAST(coalesce(e.valuenum, e.value) AS DOUBLE) END AS number)''')
  steps.append((f'{table}: of these items and patients', bounded.count(db, f'FROM {table}'), 'rows'))
  counts = dict(db.execute(f'SELECT fate, count(*) FROM {table} GROUP BY fate').fetchall())
  steps += [(f'{table}: {reason}', counts[i], 'rows') for i, (reason, _) in enumerate(_FATES) if i in counts]
  known = {str(item.itemid): item for item in items}
  db.execute(f'CREATE TABLE {table}_units (itemid VARCHAR, unit VARCHAR, feature SMALLINT, scale DOUBLE, shift DOUBLE)')
  for itemid, unit in db.execute(f'SELECT DISTINCT itemid, unit FROM {table} WHERE fate = -1').fetchall():
    item, f = known[itemid], FEATURES.require(known[itemid].feature, 'data.path')
    given = item.unit if bounded.no_unit(unit) else unit
    factors = bounded.conversion(FEATURES[f], given, f'data.path: item {itemid} of {table}')
    db.execute(f'INSERT INTO {table}_units VALUES (?, ?, ?, ?, ?)', (itemid, unit, f, *factors))
  converted = f'FROM {table} t JOIN {table}_units u ON t.itemid = u.itemid AND t.unit IS NOT DISTINCT FROM u.unit ' \
              'WHERE fate = -1'
  part = f'feature = {FEATURES.require(FRACTION, "data.path")} AND number > 0 AND number <= 1'
  if fractions := bounded.count(db, f'{converted} AND {part}'):
    steps.append((f'{table}: {FRACTION} written as a fraction, made a percentage', fractions, 'rows'))
  db.execute(f'INSERT INTO events SELECT patient, hour, feature, single(CASE WHEN {part} THEN 100 * number '
             f'ELSE number * scale + shift END) {converted}')


def _add_gcs_total(db: duckdb.DuckDBPyConnection) -> None:
  """MIMIC-IV charts no total: the sum where all three parts stand at one time."""
  total, *parts = (FEATURES.require(name, 'data.path') for name in ('GCS total', *GCS))
  db.execute(f'''
      INSERT INTO events SELECT patient, hour, {total}, single(sum(value))
      FROM (SELECT patient, hour, feature, avg(value) AS value
            FROM (SELECT DISTINCT * FROM events WHERE feature IN {tuple(parts)}) GROUP BY patient, hour, feature)
      GROUP BY patient, hour HAVING count(*) = 3''')
