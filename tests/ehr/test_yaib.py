"""Three written tables with their traps, and the MIMIC-III demo cohort where it is present."""

from __future__ import annotations

import datetime
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eagrl_jax.ehr.sources import yaib, yaib_features
from eagrl_jax.ehr.sources.bounded import Grid
from eagrl_jax.types import EagrlError

DEMO = pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'yaib_mimic_demo'
demo = pytest.mark.skipif(not DEMO.is_dir(), reason='../shared/data/yaib_mimic_demo is absent')
NAN = float('nan')
TABLES = {
    'dyn': {'stay_id': [7, 7, 7, 7, 8, 8, 9], 'time': [0, 1, 5, 30, 2, 30, 0], 'hr': [80.0, NAN, 90, 99, 70, 75, 60],
            'crea': [None, 1.5, None, None, 2.0, None, 1.0], 'sbp': [0.0, None, 120, None, None, None, 90]},
    'sta': {'stay_id': [8, 7, 9], 'age': [50.0, None, 70], 'sex': ['Female', 'Male', None], 'height': [170.0, NAN, 1]},
    'outc': {'stay_id': [7, 8, 9], 'label': [1, 0, None]},
}


def make(folder, unit='s', **change):
  for name, table in TABLES.items():
    table = {k: v for k, v in {**table, **change.get(name, {})}.items() if v is not ...}
    columns = {k: pa.array(v) for k, v in table.items()}
    if name == 'dyn' and 'time' in columns:
      times = [datetime.timedelta(hours=h) for h in table['time']]
      columns['time'] = pa.array(times, pa.duration(unit)) if unit else pa.array(table['time'])
    pq.write_table(pa.table(columns), folder / f'{name}.parquet')
  return folder


def load(folder, window=24.0, **options):
  return yaib.load(folder, grid=Grid(1.0, 'mean', window), task='mortality', setting='adults', **options)


def rows_of(cohort):
  spelt = [(*spec.aliases, spec.name)[0] for spec in cohort.features]  # as in the tables
  return sorted((str(cohort.subject_id[p]), float(h), spelt[f], float(v)) for p, h, f, v in
                zip(cohort.patient, cohort.hour, cohort.feature, cohort.value))


@pytest.mark.parametrize('unit', ['s', 'us', 'ns'])
def test_tables_join_and_everything_dropped_is_counted(tmp_path, unit):
  cohort = load(make(tmp_path, unit))
  assert rows_of(cohort) == [
      ('7', 0, 'hr', 80), ('7', 1, 'crea', 1.5), ('7', 5, 'hr', 90), ('7', 5, 'sbp', 120),
      ('8', 0, 'height', 170), ('8', 2, 'crea', 2), ('8', 2, 'hr', 70)]
  who = {s: (int(y), int(x), -1 if np.isnan(a) else float(a)) for s, y, x, a in
         zip(cohort.subject_id, cohort.label, cohort.sex, cohort.age)}
  assert who == {'7': (1, 1, -1), '8': (0, 0, 50)}
  assert set(cohort.attrition) >= {
      ('read', 3, 'patients'), ('without label', 1, 'patients'), ('read', 7, 'rows'),
      ('of a stay without label', 1, 'rows'), ('before admission', 0, 'rows'), ('after the window', 2, 'rows'),
      ('outside hard range: systolic blood pressure', 1, 'values'), ('kept', 2, 'patients')}
  assert not any(step.startswith('not finite') for step, _, _ in cohort.attrition)  # NaN is missing, no value
  assert ('8', 30, 'hr', 75) in rows_of(load(tmp_path, window=0.0))


def test_own_features_and_sex_codes(tmp_path):
  (tmp_path / 'f.yaml').write_text('[{name: pulse, aliases: [hr]}, {name: creatinine, aliases: [crea]}, {name: sbp}]')
  make(tmp_path, sta={'sex': ['2', '1', None]})
  cohort = load(tmp_path, features=tmp_path / 'f.yaml', sex_codes={'1': 1, '2': 0})
  assert cohort.features.names == ('pulse', 'creatinine', 'sbp') and sorted(cohort.sex) == [0, 1]


@pytest.mark.parametrize(('change', 'match'), [
    ({'dyn': {'time': ...}}, "dyn.parquet has no column 'time'"), ({'sta': {'sex': ...}}, "no column 'sex'"),
    ({'unit': ''}, "'time' in dyn.parquet is of type int64, whose unit is unknown; write it as a duration"),
    ({'sta': {'stay_id': ['8', '7', 'x']}}, "'stay_id' is text in sta.parquet and int64 in dyn.parquet; write it in"),
    ({'outc': {'stay_id': pa.array(['7', '8', '9']).dictionary_encode()}}, "'stay_id' is text in outc.parquet and"),
    ({'dyn': {'creat': [1.0] * 7}}, "unknown feature 'creat'; did you mean 'creatinine'"),
    ({'dyn': {'hr': ['80'] * 7}}, "'hr' in dyn.parquet is of type string; write numbers"),
    ({'outc': {'time': [1, 1, 1]}}, "outc.parquet has a label for every 'time'"),
    ({'outc': {'stay_id': [7, 7, 8]}}, '1 stays stand twice in outc.parquet'),
    ({'outc': {'label': [0, 1, 2]}}, "1 entries of 'label' in outc.parquet are not 0 or 1"),
    ({'outc': {'label': [1, 1, 1]}}, 'all 3 patients are positive'),
    ({'sta': {'sex': ['1', '2', None]}}, "2 entries of 'sex' in sta.parquet have an unknown code; give --config.data"),
    ({'sta': {'age': [500.0, 1, 2]}}, 'data.age: 1 ages')])
def test_bad_tables_are_one_line(tmp_path, change, match):
  with pytest.raises(EagrlError, match=match) as caught:
    load(make(tmp_path, **change))
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(('table', 'column', 'name', 'used'), [
    ('dyn', 'hr', 'hr', True), ('dyn', 'hr', 'HR', True), ('dyn', 'time', 'time', True), ('sta', 'age', 'AGE', True),
    ('sta', 'height', 'height', True), ('outc', 'label', 'label', True), ('sta', 'ward', 'ward', False)])
def test_two_columns_of_one_name_are_refused_where_they_are_used(tmp_path, table, column, name, used):
  path = make(tmp_path, sta={'ward': ['x', 'y', 'z']}) / f'{table}.parquet'
  whole = pq.read_table(path)
  pq.write_table(whole.append_column(name, whole[column]), path)
  if not used:
    assert len(load(tmp_path)) == 2
    return
  with pytest.raises(EagrlError, match=f"^data.path: {table}.parquet has two columns '{column}'; keep one$"):
    load(tmp_path)


def test_missing_and_damaged_tables(tmp_path):
  make(tmp_path)
  path = tmp_path / 'dyn.parquet'
  whole = path.read_bytes()
  path.write_bytes(whole[:100] + whole[-300:])
  with pytest.raises(EagrlError, match='data.path: .*(damaged|no parquet)'):
    load(tmp_path)
  path.unlink()
  with pytest.raises(EagrlError, match='holds no dyn.parquet'):
    load(tmp_path)


@demo
def test_demo():
  cohort = load(DEMO, window=0.0)
  found = {(step, unit): count for step, count, unit in cohort.attrition}
  assert (len(cohort), int(cohort.label.sum()), found[('read', 'rows')]) == (99, 21, 2475)
  assert len(yaib_features.FEATURES) == 50 and len(np.unique(cohort.feature)) == 49  # no CRP in it
  assert set(cohort.sex.tolist()) == {0, 1} and cohort.hour.max() == 24
  outside = sum(count for (step, _), count in found.items() if step.startswith('outside hard range'))
  assert outside < 0.01 * len(cohort.value)
