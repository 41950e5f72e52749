"""MEDS 0.3 and later: shards of (subject_id, time, code, numeric_value), labels by (subject_id, prediction_time).

Only events at or before the prediction time are read. A code is a feature's when it is spelt as the feature's name
or an alias in the features file, or when it is so without its last `//` part, which then is the unit; of a code listed
whole, too, where that part is a known unit. A column `unit`, where there is one, goes before all of it. Age comes from
MEDS_BIRTH, sex from a code such as GENDER//F.

Labels are those that ACES writes, one file or a folder of shards; other columns, as its triggers and windows, are not
read. Times may be of any resolution, with a zone (then both in one) or without. The same label twice counts once; two
different ones of a patient at one time are refused. Of new patients the label set says when to predict and no more.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eagrl_jax.ehr import store, units
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.records import Cohort
from eagrl_jax.ehr.sources import bounded, bounded_cohort
from eagrl_jax.ehr.sources.bounded import Grid, Steps
from eagrl_jax.types import EagrlError

_DATA = ('subject_id', 'time', 'code', 'numeric_value')
_LABELS = ('subject_id', 'prediction_time', 'boolean_value')
# Of any type; NULL also of what is neither a number nor true or false.
_LABEL = 'coalesce(TRY_CAST(boolean_value AS DOUBLE), CAST(TRY_CAST(boolean_value AS BOOLEAN) AS DOUBLE))'
_WHEN = 'subject_id and prediction_time say whom to predict and when'
_SEX = "CASE WHEN regexp_matches(code, '^(GENDER|SEX)//(M|MALE)$', 'i') THEN 1 " \
       "WHEN regexp_matches(code, '^(GENDER|SEX)//(F|FEMALE)$', 'i') THEN 0 END"
# SQL over time, s.cut, s.start and numeric_value; the first that holds decides.
# Rows outside the window are those of a patient's other days and stays, as many as there are: no sign of a wrong clock.
_FATES = (('without a time', 'time IS NULL'), ('after the prediction time', 'time > s.cut'),
          ('before the window', 'time <= s.start'), ('without a number', 'numeric_value IS NULL'))


def load(path: str | Path, outcomes: str | Path, *, features: str | Path | None, grid: Grid, task: str,
         setting: str, labelled: bool = True, known: FeatureTable | None = None) -> Cohort:
  """Reads a data set and a label set.

  Args:
    path: the data set's root, or a folder of shards.
    outcomes: a label file, or a folder of them.
    features: YAML or JSON list of FeatureSpec fields, with codes as names or aliases.
    grid: its window_hours are those before the prediction time; 0 = all that came before.
    task, setting: see Cohort.
    labelled: False reads new patients: boolean_value is neither needed nor read, and labels are 0.
    known: a run's features; its codes for missing, which few patients do not show, go before anything is averaged.

  Returns:
    A validated cohort, one row a patient: the first labelled prediction time. Hours count from the window's start,
    without a window from the patient's first event that is used.

  Raises:
    EagrlError: files, columns or features missing, contradictory labels, an unknown unit.
  """
  if not features:
    raise EagrlError('data.features: a MEDS data set has thousands of codes; give a file of the features to use, with '
                     'their codes as aliases, by --config.data.features=')
  if not outcomes:
    raise EagrlError(f'data.outcomes: a MEDS data set comes with a label set, whose {_WHEN}; give its file or folder')
  table, steps = store.read_features(features).with_sentinels(known), Steps()
  with bounded.database() as db:
    root = Path(path)
    data, have, zoned = _parquet(root / 'data' if (root / 'data').is_dir() else root, 'data.path', _DATA)
    asked = (_LABELS, 'convert it to MEDS 0.3 or later') if labelled else (_LABELS[:2], f'{_WHEN}; give both')
    labels, _, labels_zoned = _parquet(Path(outcomes), 'data.outcomes', *asked)
    if zoned != labels_zoned:
      raise EagrlError('data.outcomes: of time and prediction_time one has a time zone and the other has none; write '
                       'both in one way')
    with bounded.reading('data.outcomes', Path(outcomes).name):
      _choose(db, labels, grid, steps, labelled)
    with bounded.reading('data.path', root.name):
      _read(db, data, 'CAST(unit AS VARCHAR)' if 'unit' in have else 'NULL', table, grid, steps)
      people = db.execute(f'''
          SELECT any_value(s.subject_id) AS id, any_value(label) AS label,
            date_diff('day', min(time) FILTER (code = 'MEDS_BIRTH'), any_value(s.cut)) / 365.25 AS age,
            CASE WHEN max({_SEX}) = min({_SEX}) THEN max({_SEX}) ELSE -1 END AS sex
          FROM stays s LEFT JOIN (SELECT * FROM {data} WHERE code = 'MEDS_BIRTH' OR ({_SEX}) IS NOT NULL) d
            ON CAST(d.subject_id AS VARCHAR) = s.subject_id
          GROUP BY patient ORDER BY patient''').fetchnumpy()
    age: np.ndarray = np.ma.filled(np.ma.asarray(people['age'], float), np.nan)
    return bounded_cohort.cohort(
        db, table, grid, steps, name='meds', task=task, setting=setting, ids=people['id'].astype(str).tolist(),
        age=age, sex=np.asarray(people['sex']), label=np.asarray(people['label']), labelled=labelled)


def _parquet(path: Path, field: str, columns: tuple[str, ...],
             fix: str = 'convert it to MEDS 0.3 or later') -> tuple[str, set[str], bool]:
  """An SQL source of all shards, once their columns are checked; the columns it has; whether times have a zone.

  Args:
    columns: a patient, a time and what else there must be.
    fix: what to do where one is missing.
  """
  files = sorted(path.rglob('*.parquet')) if path.is_dir() else [path] if path.is_file() else []
  if not files:
    raise EagrlError(f'{field}: {path.name} holds no parquet file; give the folder of a MEDS data set or label set')
  try:
    schemas = [pq.read_schema(file) for file in files]
  except (OSError, UnicodeError, pa.ArrowException):
    raise EagrlError(f'{field}: {path.name} is damaged or holds a file that is no parquet; get it again') from None
  have = {name for schema in schemas for name in schema.names}
  for column in columns:
    if column not in have:
      raise EagrlError(f'{field}: {path.name} has no column {column!r}; {fix}')
  for schema in schemas:
    lower = [name.lower() for name in schema.names]  # as the database tells columns apart
    used = (*columns, 'unit') if 'code' in columns else columns
    if twice := [name for name in used if lower.count(name) > 1]:
      raise EagrlError(f'{field}: a file of {path.name} has two columns {twice[0]!r}; keep one')
  who, when = ([s.field(c).type for s in schemas if c in s.names] for c in columns[:2])
  if wrong := [kind for kind in who if not (pa.types.is_integer(kind) or _is_text(kind))]:
    raise EagrlError(f'{field}: {columns[0]!r} in {path.name} is of type {wrong[0]}; write whole numbers')
  if not (when := [kind for kind in when if not pa.types.is_null(kind)]):  # as of a shard of static rows alone
    raise EagrlError(f'{field}: {columns[1]!r} in {path.name} is empty; write timestamps')
  if wrong := [kind for kind in when if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind))]:
    raise EagrlError(f'{field}: {columns[1]!r} in {path.name} is of type {wrong[0]}; write timestamps')
  codes = [s.field('code').type for s in schemas if 'code' in columns and 'code' in s.names]
  if wrong := [kind for kind in codes if not _is_text(kind.value_type if pa.types.is_dictionary(kind) else kind)]:
    raise EagrlError(f"{field}: 'code' in {path.name} is of type {wrong[0]}; write text")
  zoned = {pa.types.is_timestamp(kind) and kind.tz is not None for kind in when}
  if len(zoned) > 1:
    raise EagrlError(f'{field}: some files of {path.name} write {columns[1]!r} with a time zone and some without; use '
                     'one way')
  utc = f'CAST(CAST({columns[1]} AS TIMESTAMPTZ) AS TIMESTAMP)'  # whatever the resolution
  return (f'(SELECT * REPLACE ({utc} AS {columns[1]}) FROM read_parquet([{", ".join(map(bounded.quoted, files))}], '
          'union_by_name=true))', have, zoned.pop())


def _is_unit(part: str, spec: FeatureSpec) -> bool:
  """Whether the last part of a code that a features file lists whole says in which unit its values are."""
  return bool(spec.unit) and (units.into(spec, part) is not None or units.known(part))


def _is_text(kind: pa.DataType) -> bool:
  return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _choose(db: duckdb.DuckDBPyConnection, labels: str, grid: Grid, steps: Steps, labelled: bool) -> None:
  """Makes the table `stays`: patient, subject_id, start and cut of the window, label."""
  if labelled and (wrong := bounded.count(db, f'FROM {labels} WHERE boolean_value IS NOT NULL AND '
                                              f'coalesce({_LABEL}, 2) NOT IN (0, 1)')):
    raise EagrlError(f"data.outcomes: {wrong} entries of 'boolean_value' are not true, false, 0 or 1; give a yes-or-no "
                     'task')
  value, said = (f'CAST({_LABEL} AS BOOLEAN)', 'label') if labelled else ('false', 'prediction time')
  db.execute(f'CREATE TABLE asked AS SELECT CAST(subject_id AS VARCHAR) AS subject_id, '
             f'prediction_time AS cut, {value} AS label FROM {labels}')
  rows = bounded.count(db, 'FROM asked')
  steps.append((f'{said}s read', rows, 'rows'))
  for column, name, fix in (('label', 'boolean_value', 'give a yes-or-no task, of ACES one whose window has a label'),
                            ('cut', 'prediction_time', 'of ACES, give a window index_timestamp')):
    if rows and not bounded.count(db, f'FROM asked WHERE {column} IS NOT NULL'):
      raise EagrlError(f'data.outcomes: {name!r} is empty in all {rows} labels; {fix}')
  two = bounded.count(db, 'FROM (SELECT 1 FROM asked WHERE label IS NOT NULL GROUP BY subject_id, cut '
                          'HAVING min(label) <> max(label))')
  if two:
    raise EagrlError(f'data.outcomes: {two} patients have two different labels at one prediction_time; keep one')
  for reason, condition in (*((('outcome left empty', 'label IS NULL'),) if labelled else ()),
                            ('without subject_id or prediction_time', 'subject_id IS NULL OR cut IS NULL')):
    steps.append((reason, bounded.drop(db, 'asked', condition), 'rows'))
  again = bounded.count(db, 'FROM asked') - bounded.count(db, 'FROM (SELECT DISTINCT * FROM asked)')
  if again:
    steps.append((f'the same {said} again', again, 'rows'))
  start = f'cut - to_microseconds({round(grid.window_hours * 3.6e9)})' if grid.window_hours else 'NULL::TIMESTAMP'
  db.execute(f'CREATE TABLE stays AS SELECT row_number() OVER (ORDER BY subject_id) - 1 AS patient, subject_id, '
             f'{start} AS start, cut, CAST(label AS TINYINT) AS label '
             'FROM (SELECT subject_id, min(cut) AS cut, arg_min(label, cut) AS label FROM asked GROUP BY subject_id)')
  patients = bounded.count(db, 'FROM stays')
  steps += [('not the first prediction time of a patient', bounded.count(db, 'FROM asked') - again - patients, 'rows'),
            (f'with a {said}', patients, 'patients')]


def _read(db: duckdb.DuckDBPyConnection, data: str, unit: str, table: FeatureTable, grid: Grid, steps: Steps) -> None:
  """Adds the chosen codes' values in the window to `events`."""
  spelt = {name: f for f, spec in enumerate(table) for name in (spec.name, *spec.aliases)}
  db.execute('CREATE TABLE codes (code VARCHAR, unit VARCHAR, feature SMALLINT, scale DOUBLE, shift DOUBLE, '
             'sentinels DOUBLE[])')
  chosen = []
  for code, given in db.execute(f'SELECT DISTINCT code, {unit} FROM {data}').fetchall():
    stem, _, last = (code or '').rpartition('//')
    f = spelt.get(code, spelt.get(stem))
    if f is not None:
      named = last if code not in spelt or (stem and _is_unit(last, table[f])) else None
      meant = named if bounded.no_unit(given) else given
      chosen.append((code, given, f, *bounded.conversion(table[f], meant, 'data.path'),
                     list(table[f].sentinels)))
  if not chosen:
    raise EagrlError('data.features: none of its names and aliases is a code of the data set; write the codes of '
                     'metadata/codes.parquet as aliases')
  db.executemany('INSERT INTO codes VALUES (?, ?, ?, ?, ?, ?)', chosen)
  fate = ' '.join(f'WHEN {condition} THEN {i}' for i, (_, condition) in enumerate(_FATES))
  db.execute(f'''
      CREATE TABLE found AS
      SELECT s.patient, c.feature, CASE {fate} ELSE -1 END AS fate, time, s.start,
        CASE WHEN list_contains(sentinels, numeric_value) THEN numeric_value
          ELSE numeric_value * scale + shift END AS value
      FROM (SELECT subject_id, time, code, {unit} AS unit,
          CAST(numeric_value AS DOUBLE) AS numeric_value FROM {data}) d
      JOIN codes c ON d.code = c.code AND d.unit IS NOT DISTINCT FROM c.unit
      JOIN stays s ON CAST(d.subject_id AS VARCHAR) = s.subject_id''')
  steps.append(('of these codes and patients', bounded.count(db, 'FROM found'), 'rows'))
  counts = dict(db.execute('SELECT fate, count(*) FROM found GROUP BY fate').fetchall())
  steps += [(reason, counts[i], 'rows') for i, (reason, _) in enumerate(_FATES) if i in counts]
  # The window is closed at its end and visits are not: the prediction time itself is moved an instant forward.
  last = float(np.nextafter(np.float32(grid.window_hours), np.float32(0))) if grid.window_hours else float('inf')
  db.execute('''
      INSERT INTO events
      SELECT patient, least(date_diff('microsecond', origin, time) / 3.6e9, ?), feature, single(value)
      FROM found JOIN (SELECT patient, coalesce(any_value(start), min(time)) AS origin FROM found WHERE fate = -1
                       GROUP BY patient) USING (patient) WHERE fate = -1''', [last])
