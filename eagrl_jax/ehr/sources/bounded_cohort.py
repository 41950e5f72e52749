"""From the table `events` to a cohort: what `validation` and `crossfield` do in memory, in SQL, under the same names.

Impossible values go, duplicates are merged and contradictions settled before anything is averaged over a visit.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eagrl_jax.ehr import concepts, crossfield, sentinels, validation
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.records import Cohort, Rejects, hashed_order
from eagrl_jax.ehr.sources.bounded import Grid, Steps, count, quoted, reading
from eagrl_jax.types import EagrlError

_INSIDE = 'isfinite(value) AND NOT coded AND value BETWEEN low AND high'
_OUTSIDE = 'isfinite(value) AND NOT coded AND NOT (value BETWEEN low AND high)'
_GOOD = f'{_INSIDE} AND known'
_BEYOND = 'outside hard range'


@np.errstate(over='ignore')  # what float32 cannot hold becomes infinite, and is counted as not finite
def cohort(db: duckdb.DuckDBPyConnection, features: FeatureTable, grid: Grid, steps: Steps, *, name: str, task: str,
           setting: str, ids: list[str], age: np.ndarray, sex: np.ndarray, label: np.ndarray,
           stay_end: np.ndarray | None = None, labelled: bool = True) -> Cohort:
  """The validated cohort of the patients with these ids, whose places in the list are their numbers in `events`.

  Closes the database: what it holds in memory is free then for the arrays.
  """
  features = judge(db, features, grid, steps, labelled)
  steps.append((f'after binning to {grid.bin_hours:g} h', count(db, 'FROM visit_values'), 'values'))
  age = validation.oldest_as_one(np.asarray(age, np.float32), steps)
  if labelled:
    _two_groups(db, features, steps)
  subject_id, known = np.array(ids, str), np.zeros(len(ids), bool)
  known[db.execute('SELECT DISTINCT patient FROM visit_values').fetchnumpy()['patient']] = True
  if not known.all():
    steps.append(('without any observation', int(np.sum(~known)), 'patients'))
  order = hashed_order(subject_id, name)
  rows = order[known[order]]
  rejects = _rejects(db, np.array(ids, object), features)
  found = in_order(db, rows)
  steps += [('kept', len(rows), 'patients'), ('kept', len(found['value']), 'values')]
  made = Cohort(name=name, task=task, setting=setting, features=features, subject_id=subject_id[rows], age=age[rows],
                sex=np.asarray(sex, np.int8)[rows], label=np.asarray(label, np.int8)[rows], patient=found['patient'],
                hour=found['hour'], feature=found['feature'], value=found['value'], attrition=tuple(steps),
                stay_end=None if stay_end is None else stay_end[rows], rejects=rejects)
  validation.check(made, labelled)
  return made


def judge(db: duckdb.DuckDBPyConnection, features: FeatureTable, grid: Grid, steps: Steps,
          judge_features: bool = True) -> FeatureTable:
  """Makes two tables out of `events`, both of patient, hour, feature and value.

  `visit_values` has one row a patient, visit and feature, at the hour of the visit's last value; `rejects` what is not
  used, with the reason. `judge_features`: see `validation.validate`.

  Returns:
    The features, with codes for missing that were found among their sentinels.

  Raises:
    EagrlError: a feature's values lie outside its hard range, or fit another unit better.
  """
  for spec in features:
    if spec.repeats == 'last':
      raise EagrlError(f'features: {spec.name!r}: repeats last needs the order of a csv or wide_csv, which this source '
                       'does not have; use mean')
  _rescale(db, features, steps)
  low, high = validation.hard_limits(features)
  db.execute('CREATE TABLE ranges (feature SMALLINT, low FLOAT, high FLOAT, sentinels FLOAT[], levels FLOAT[])')
  db.executemany('INSERT INTO ranges VALUES (?, ?, ?, ?, ?)', [
      (f, float(low[f]), float(high[f]), list(spec.sentinels), [level for level, _ in spec.levels] or None)
      for f, spec in enumerate(features)])
  db.execute('CREATE VIEW judged AS SELECT e.*, low, high, list_contains(sentinels, value) AS coded, '
             'levels IS NULL OR list_contains(levels, value) AS known FROM events e JOIN ranges USING (feature)')
  db.execute('CREATE TABLE rejects (patient INTEGER, hour FLOAT, feature SMALLINT, value FLOAT, reason VARCHAR)')
  _refuse_and_count(db, features, steps, judge_features)
  if judge_features:
    features = _unlisted_codes(db, features, steps)
  _merge_duplicates(db, steps)
  _contradictions(db, features, steps)
  _totals(db, features, steps)
  of_visit = {'mean': 'CAST(avg(value) AS FLOAT)', 'last': 'arg_max(value, hour)'}[grid.aggregate]
  with reading('data.path', 'the temporary database'):
    db.execute(f'CREATE TABLE visit_values AS SELECT patient, max(hour) AS hour, feature, {of_visit} AS value '
               f'FROM merged GROUP BY patient, feature, floor(hour / {_single(grid.bin_hours)})')
  return features


def in_order(db: duckdb.DuckDBPyConnection, rows: np.ndarray) -> dict[str, np.ndarray]:
  """What `visit_values` holds, sorted by (patient, hour, feature), and patients renumbered: row i is of `rows[i]`.

  Closes the database, and reads a file that it has written: it sorts in memory that the arrays take afterwards.
  """
  kinds = {'patient': np.int32, 'hour': np.float32, 'feature': np.int16, 'value': np.float32}
  with reading('data.path', 'the temporary database'):
    folder = db.execute("SELECT current_setting('temp_directory')").fetchall()[0][0]
    path = Path(folder) / 'values.parquet'
    db.register('numbers', pa.table({'patient': rows.astype(np.int32), 'row': np.arange(len(rows), dtype=np.int32)}))
    db.execute('COPY (SELECT row AS patient, hour, feature, value FROM visit_values JOIN numbers USING (patient) '
               f'ORDER BY row, hour, feature) TO {quoted(path)} (FORMAT parquet)')
    db.close()
  return {k: pq.read_table(path, columns=[k])[k].to_numpy().astype(kind, copy=False) for k, kind in kinds.items()}


def _rejects(db: duckdb.DuckDBPyConnection, ids: np.ndarray, features: FeatureTable) -> Rejects:
  with reading('data.path', 'the temporary database'):
    aside = db.execute('SELECT * FROM rejects ORDER BY patient, hour, feature').fetchnumpy()
  return Rejects(ids[aside['patient'].astype(np.int32)], np.asarray(aside['hour'], np.float32),
                 np.array(features.names, object)[aside['feature'].astype(np.int16)],
                 np.asarray(aside['value'], np.float32), np.asarray(aside['reason'], object))


def _two_groups(db: duckdb.DuckDBPyConnection, features: FeatureTable, steps: Steps) -> None:
  """What `validation.two_groups` finds in a feature's visits."""
  for f, spec in enumerate(features):
    mine = f'visit_values WHERE feature = {f}'
    if spec.levels or spec.specimen or count(db, f'FROM {mine}') < validation.ENOUGH:
      continue
    found = db.execute(f'SELECT value, patient FROM {mine} ORDER BY patient, hour').fetchnumpy()
    if validation.two_groups(np.asarray(found['value'], np.float32), np.asarray(found['patient'], np.int32)):
      steps.append((f'{validation.TWO_GROUPS}, not used until features give its specimen: {spec.name}',
                    len(found['value']), 'values'))
      _reject(db, quoted(validation.NO_SPECIMEN_OF_TWO), mine)
      db.execute(f'DELETE FROM {mine}')


def _single(number: float) -> str:
  """A literal of the type that hours and values have."""
  return f"CAST('{float(np.float32(number))!r}' AS FLOAT)"


def _rescale(db: duckdb.DuckDBPyConnection, features: FeatureTable, steps: Steps) -> None:
  for f, spec in enumerate(features):
    ranges = [f'value BETWEEN {_single(low)} AND {_single(high)}' for low, high, *_ in spec.rescale]
    for i, (low, high, *_) in enumerate(spec.rescale):  # the first that holds decides
      before = ''.join(f' AND NOT {r}' for r in ranges[:i])
      if converted := count(db, f'FROM events WHERE feature = {f} AND {ranges[i]}{before}'):
        steps.append((f'converted from {low:g} to {high:g}: {spec.name}', converted, 'values'))
    if ranges:
      cases = ' '.join(f'WHEN {r} THEN {_in_unit(scale, offset)}' for r, (_, _, scale, offset) in
                       zip(ranges, spec.rescale))
      db.execute(f'UPDATE events SET value = CASE {cases} ELSE value END WHERE feature = {f}')


def _in_unit(scale: float, offset: float) -> str:
  return f'{_single(scale)} * value + {_single(offset)}'


def _refuse_and_count(db: duckdb.DuckDBPyConnection, features: FeatureTable, steps: Steps,
                      judge_features: bool) -> None:
  counts = db.execute(
      f'SELECT feature, count(*), count(*) FILTER (NOT isfinite(value)), count(*) FILTER (isfinite(value) AND coded), '
      f'count(*) FILTER ({_OUTSIDE}), count(*) FILTER ({_INSIDE} AND NOT known) FROM judged GROUP BY feature '
      'ORDER BY feature').fetchall()
  steps.append(('read', sum(row[1] for row in counts), 'values'))
  if infinite := sum(row[2] for row in counts):
    steps.append(('not finite', infinite, 'values'))
  _reject(db, "CASE WHEN NOT isfinite(value) THEN 'not finite' WHEN coded THEN 'code for missing' "
              f'ELSE {quoted(_BEYOND)} END', f'judged WHERE NOT ({_INSIDE})')
  for f, total, infinite, coded, wrong, stray in counts:
    spec = features[f]
    usable = total - infinite - coded
    validation.refuse_wrong_unit(spec, usable, wrong, lambda scale, offset: count(
        db, f'FROM judged WHERE feature = {f} AND {_OUTSIDE} AND {_in_unit(scale, offset)} BETWEEN low AND high'))
    for step, gone in (('code for missing', coded), (_BEYOND, wrong)):
      if gone:
        steps.append((f'{step}: {spec.name}', gone, 'values'))
    if wrong:
      _other_units(db, f, spec, steps)
    if judge_features and validation.mixes_specimens(spec, usable, wrong):
      steps.append((f'not used until features give its specimen: {spec.name}', usable - wrong, 'values'))
      _reject(db, quoted(validation.NO_SPECIMEN), f'judged WHERE feature = {f} AND {_INSIDE}')
      db.execute(f'DELETE FROM events WHERE feature = {f}')
    elif stray:
      steps.append((f'{validation.NO_LEVEL}: {spec.name}', stray, 'values'))
  _reject(db, quoted(validation.NO_LEVEL), f'judged WHERE {_INSIDE} AND NOT known')


def _reject(db: duckdb.DuckDBPyConnection, reason: str, rest: str) -> None:
  """Puts rows aside; `reason` is SQL, `rest` the query from the table on."""
  db.execute(f'INSERT INTO rejects SELECT patient, hour, feature, value, {reason} FROM {rest}')


def _other_units(db: duckdb.DuckDBPyConnection, f: int, spec: FeatureSpec, steps: Steps) -> None:
  """What of a feature's impossible values would be possible in a unit that it accepts."""
  for unit, scale, offset in spec.accepted_units:
    fits = f"feature = {f} AND starts_with(reason, {quoted(_BEYOND)}) AND {_in_unit(scale, offset)} BETWEEN " \
           f'(SELECT low FROM ranges WHERE feature = {f}) AND (SELECT high FROM ranges WHERE feature = {f})'
    if unit != spec.unit and (found := count(db, f'FROM rejects WHERE {fits}')):
      steps.append((f'of these possible in {unit}: {spec.name}', found, 'values'))
      db.execute(f'UPDATE rejects SET reason = ? WHERE {fits}', [f'{_BEYOND}, possible in {unit}'])


def _unlisted_codes(db: duckdb.DuckDBPyConnection, features: FeatureTable, steps: Steps) -> FeatureTable:
  """What `sentinels` finds, before a code is averaged with values; codes become sentinels, as in `validation`."""
  specs = list(features)
  rows = db.execute(f'SELECT feature, count(*) FROM judged WHERE {_GOOD} GROUP BY feature ORDER BY feature').fetchall()
  for f, total in rows:
    if total < validation.ENOUGH or features[f].levels:
      continue
    low, high = (db.execute(f'SELECT value, count(*) FROM judged WHERE {_GOOD} AND feature = {f} GROUP BY value '
                            f'ORDER BY value {order} LIMIT {sentinels.EDGES}').fetchall() for order in ('ASC', 'DESC'))
    codes, odd = sentinels.suspected(low, high, total)
    for step, found in ((sentinels.CODE, codes), (sentinels.ODD, odd)):
      here = f'feature = {f} AND value IN ({", ".join(map(_single, found))})'
      if found:
        steps.append((f'{step}: {features[f].name}', count(db, f'FROM judged WHERE {_GOOD} AND {here}'), 'values'))
      if found and step == sentinels.CODE:
        _reject(db, quoted(step), f'judged WHERE {_GOOD} AND {here}')
        db.execute(f'DELETE FROM events WHERE {here}')
        specs[f] = dataclasses.replace(specs[f], sentinels=(*specs[f].sentinels, *codes))
  return FeatureTable(tuple(specs))


def _merge_duplicates(db: duckdb.DuckDBPyConnection, steps: Steps) -> None:
  """Makes the table `merged` out of what is good: one value a patient, time and feature, the mean of different ones."""
  db.execute(f'''
      CREATE TABLE merged AS
      SELECT patient, hour, feature, CAST(avg(value) AS FLOAT) AS value, CAST(sum(rows) - count(*) AS INTEGER) AS again,
        count(*) > 1 AS conflict
      FROM (SELECT patient, hour, feature, value, count(*) AS rows FROM judged WHERE {_GOOD}
            GROUP BY patient, hour, feature, value)
      GROUP BY patient, hour, feature''')
  again, conflicts = db.execute('SELECT coalesce(sum(again), 0), count(*) FILTER (conflict) FROM merged').fetchall()[0]
  for step, found in ((validation.IDENTICAL, int(again)), (validation.CONFLICT, conflicts)):
    if found:
      steps.append((step, found, 'values'))


def _contradictions(db: duckdb.DuckDBPyConnection, features: FeatureTable, steps: Steps) -> None:
  """The rules of `crossfield`, before values are averaged over a visit."""
  found = list(crossfield.applicable(features))
  for i, (rule, roles) in enumerate(found):
    db.execute(f'CREATE TABLE wrong{i} AS SELECT patient, hour FROM {_together(roles)} WHERE {rule.sql}')
    if moments := count(db, f'FROM wrong{i}'):
      steps.append((rule.reason, moments, 'values'))
  for i, (rule, roles) in enumerate(found):  # all are judged before any goes
    mine = f'feature IN ({", ".join(str(roles[r]) for r in rule.aside)}) AND (patient, hour) IN ' \
           f'(SELECT (patient, hour) FROM wrong{i})'
    _reject(db, quoted(rule.reason), f'merged WHERE {mine}')
    db.execute(f'DELETE FROM merged WHERE {mine}')


def _totals(db: duckdb.DuckDBPyConnection, features: FeatureTable, steps: Steps) -> None:
  """A coma score's total becomes the sum of its parts where all of them are there."""
  parts = crossfield.find(features, concepts.GCS)
  if len(parts) < len(concepts.GCS):
    return
  db.execute('CREATE TABLE sums AS SELECT * FROM (SELECT patient, hour, r0, CAST(r1 AS FLOAT) + CAST(r2 AS FLOAT) + '
             f'CAST(r3 AS FLOAT) AS total FROM {_together(parts)}) WHERE r0 <> total')
  if found := count(db, 'FROM sums'):
    steps.append((crossfield.GCS_REASON, found, 'values'))
    mine = f'feature = {parts[0]} AND merged.patient = sums.patient AND merged.hour = sums.hour'
    _reject(db, quoted(crossfield.GCS_REASON), f'merged JOIN sums USING (patient, hour) WHERE feature = {parts[0]}')
    db.execute(f'UPDATE merged SET value = total FROM sums WHERE {mine}')


def _together(features: list[int]) -> str:
  """An SQL source of patient, hour, r0, r1, ...: these features' values at the moments that have them all."""
  columns = ', '.join(f'avg(value) FILTER (feature = {f}) AS r{r}' for r, f in enumerate(features))
  return f'(SELECT patient, hour, {columns} FROM merged WHERE feature IN ({", ".join(map(str, features))}) ' \
         f'GROUP BY patient, hour HAVING count(*) = {len(features)})'
