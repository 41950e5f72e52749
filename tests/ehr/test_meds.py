"""A written data set with MEDS's traps, and the MIMIC-IV demo as MEDS where it is present."""

from __future__ import annotations

import datetime
import pathlib

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.sources import meds, mimic4_features
from eagrl_jax.ehr.sources.bounded import Grid
from eagrl_jax.types import EagrlError

DEMO = pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'mimic_iv_demo_meds'
demo = pytest.mark.skipif(not DEMO.is_dir(), reason='../shared/data/mimic_iv_demo_meds is absent')
START = datetime.datetime(2150, 3, 1)
SPEC = """
- {name: heart rate, unit: /min, accepted_units: [[bpm, 1, 0]], aliases: [LAB//220045], hard_low: 10, hard_high: 300}
- {name: temperature, unit: degC, aliases: [LAB//223761], accepted_units: [[degF, 0.5555555555555556, -17.7777777777]]}
- {name: sodium, unit: mmol/L, aliases: [LAB//50983//mEq/L]}
"""
# subject, hour (None: static), code, value
EVENTS = [
    (1, -8766 * 50, 'MEDS_BIRTH', None), (1, None, 'GENDER//F', None), (2, None, 'GENDER//M', None),
    (1, 0, 'LAB//220045//bpm', 80), (1, 10, 'LAB//220045//bpm', 90), (1, 24, 'LAB//220045//bpm', 100),
    (1, 24.5, 'LAB//220045//bpm', 199), (1, 20, 'LAB//223761//°F', 98.6), (1, 12, 'LAB//50983//mEq/L', 140),
    (1, 12, 'LAB//999', 5), (1, 13, 'LAB//220045//bpm', None), (2, 3, 'LAB//220045//bpm', 70),
    (3, 3, 'LAB//220045//UNK', 75), (4, 3, 'LAB//220045//bpm', 75), (5, 30, 'LAB//220045//bpm', 75),
]
# subject, hour, label
LABELS = [(1, 24, True), (1, 100, False), (2, 24, False), (3, 24, False), (5, 24, True), (6, 24, None)]


def moment(hour):
  return None if hour is None else START + datetime.timedelta(hours=hour)


def make(tmp_path, events=EVENTS, labels=LABELS, spec=SPEC, columns=None, unit=None, zone=None, shards=None):
  shards = shards or (events[::2], events[1::2])
  for name, rows in zip(('train/0', 'held_out/0'), shards):
    table = {'subject_id': pa.array([r[0] for r in rows], pa.int64()),
             'time': pa.array([moment(r[1]) for r in rows], pa.timestamp('us')),
             'code': pa.array([r[2] for r in rows], pa.string()),
             'numeric_value': pa.array([r[3] for r in rows], pa.float32())}
    if unit:
      table['unit'] = pa.array([unit] * len(rows))
    path = tmp_path / 'set' / 'data' / f'{name}.parquet'
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table).rename_columns(columns or list(table)), path)
  (tmp_path / 'labels').mkdir()
  pq.write_table(pa.table({
      'subject_id': pa.array([r[0] for r in labels], pa.int64()),
      'prediction_time': pa.array([moment(r[1]) for r in labels], pa.timestamp('us', zone)),
      'boolean_value': pa.array([r[2] for r in labels], pa.bool_())}), tmp_path / 'labels' / '0.parquet')
  (tmp_path / 'features.yaml').write_text(spec)
  return tmp_path


def load(folder, window=0.0, bin_hours=1.0, features='features.yaml', data='set', labels='labels'):
  return meds.load(folder / data, folder / labels, features=features and folder / features, task='mortality',
                   setting='patients', grid=Grid(bin_hours, 'mean', window))


def rows_of(cohort):
  return sorted((str(cohort.subject_id[p]), cohort.features[int(f)].name, round(float(h), 3), round(float(v), 2))
                for p, h, f, v in zip(cohort.patient, cohort.hour, cohort.feature, cohort.value))


def test_only_what_was_known_at_the_first_prediction_time(tmp_path):
  cohort = load(make(tmp_path))
  assert rows_of(cohort) == [
      ('1', 'heart rate', 0, 80), ('1', 'heart rate', 10, 90), ('1', 'heart rate', 24, 100), ('1', 'sodium', 12, 140),
      ('1', 'temperature', 20, 37), ('2', 'heart rate', 0, 70), ('3', 'heart rate', 0, 75)]
  who = {s: (int(y), int(x), round(float(a))) for s, y, x, a in
         zip(cohort.subject_id, cohort.label, cohort.sex, np.nan_to_num(cohort.age, nan=-1))}
  assert who == {'1': (1, 0, 50), '2': (0, 1, -1), '3': (0, -1, -1)}
  assert cohort.attrition[:9] == (
      ('labels read', 6, 'rows'), ('outcome left empty', 1, 'rows'),
      ('without subject_id or prediction_time', 0, 'rows'), ('not the first prediction time of a patient', 1, 'rows'),
      ('with a label', 4, 'patients'), ('of these codes and patients', 10, 'rows'),
      ('after the prediction time', 2, 'rows'), ('without a number', 1, 'rows'), ('read', 7, 'values'))


def test_a_code_that_a_run_knows_goes_before_a_visit_is_averaged(tmp_path):
  known = FeatureTable((FeatureSpec('sodium', 'mmol/L', sentinels=(-1.0,)),))
  make(tmp_path, [*EVENTS, (2, 4, 'LAB//50983//mEq/L', 140), (2, 5, 'LAB//50983//mEq/L', -1)])
  for codes, value in ((None, 69.5), (known, 140)):
    cohort = meds.load(tmp_path / 'set', tmp_path / 'labels', features=tmp_path / 'features.yaml', task='mortality',
                       setting='patients', grid=Grid(24.0), known=codes)
    assert ('2', 'sodium', value) in {(s, n, v) for s, n, _, v in rows_of(cohort)}


def test_the_window_is_open_at_its_start_and_closed_at_its_end(tmp_path):
  cohort = load(make(tmp_path, events=[*EVENTS, (2, 15, 'LAB//220045//bpm', 71)]), window=14.0)
  found = [r for r in rows_of(cohort) if r[0] == '1']
  assert found == [('1', 'heart rate', 14, 100), ('1', 'sodium', 2, 140), ('1', 'temperature', 10, 37)]
  assert cohort.hour.max() < 14  # so that no visit leaves the prediction time itself out


def test_a_flat_folder_and_a_column_of_units(tmp_path):
  make(tmp_path, unit='bpm', spec=SPEC.replace('unit: degC', 'unit: bpm').replace('unit: mmol/L', 'unit: bpm'))
  cohort = load(tmp_path, data='set/data/train', labels='labels/0.parquet')
  assert set(cohort.subject_id) <= {'1', '2', '3'}
  assert ('1', 'temperature', 20.0, 98.6) in rows_of(load(tmp_path))  # the column, not the code, gave the unit


def test_a_code_listed_whole_keeps_its_unit(tmp_path):
  """As metadata/codes.parquet has it; what a row says goes before, and a feature without a unit takes any."""
  whole = SPEC.replace('LAB//223761', 'LAB//223761//°F').replace('LAB//220045', 'LAB//220045//bpm, LAB//220045//UNK')
  assert rows_of(load(make(tmp_path / 'a', spec=whole))) == rows_of(load(make(tmp_path / 'b')))
  events = [*EVENTS, (2, 4, 'LAB//223761//°F', 99.5)]
  for unit, given in (('degC', 'degC'), ('""', None)):
    spec = f'[{{name: temperature, unit: {unit}, aliases: [LAB//223761//°F]}}]'
    made = load(make(tmp_path / str(given), events, spec=spec, unit=given))
    assert sorted(made.value.tolist()) == [pytest.approx(98.6), 99.5]


@pytest.mark.parametrize(('change', 'match'), [
    ({'spec': SPEC.replace('LAB//223761', 'LAB//223761//°F').replace('degC', 'mmHg').replace('degF', 'torr')},
     "'temperature' occurs in '°F', which its spec in 'mmHg' does not accept; add it to accepted_units"),
    ({'spec': '[{name: magnesium, unit: mmol/L, aliases: [LAB//50983//mEq/L]}]'}, "'magnesium' occurs in 'mEq/L'"),
    ({'events': [*EVENTS, (2, 4, 'LAB//223761//kelvin', 310)]}, "'temperature' occurs in 'kelvin', which .* accept"),
    ({'columns': ['patient_id', 'time', 'code', 'numeric_value']}, "no column 'subject_id'; convert it to MEDS 0.3"),
    ({'labels': [*LABELS, (2, 24, True)]}, '1 patients have two different labels at one prediction_time'),
    ({'zone': 'UTC'}, 'of time and prediction_time one has a time zone'),
    ({'labels': [(8, 24, True)]}, 'the cohort is empty'),
    ({'labels': LABELS[2:4]}, 'all 2 patients are negative'),
    ({'spec': '[{name: lactate}]'}, 'none of its names and aliases is a code')])
def test_bad_sets_are_one_line(tmp_path, change, match):
  with pytest.raises(EagrlError, match=match) as caught:
    load(make(tmp_path, **change))
  assert '\n' not in str(caught.value)


def relabelled(folder, values):
  path = make(folder) / 'labels' / '0.parquet'
  pq.write_table(pq.read_table(path).set_column(2, 'boolean_value', values), path)
  return folder


@pytest.mark.parametrize(('values', 'wrong'), [
    (pa.array([2, 1, 0, 0, 1, None]), 1), (pa.array([0.2, 1, 0, 0, -1, None]), 2),
    (pa.array([float('nan'), 1, 0, 0, 1, None]), 1), (pa.array(['secret', '1', '0', '0', '7', None]), 2)])
def test_labels_that_are_not_yes_or_no_are_counted(tmp_path, values, wrong):
  with pytest.raises(EagrlError, match=f"^data.outcomes: {wrong} entries of 'boolean_value' are not true, false, 0 or "
                                       '1; give a yes-or-no task$'):
    load(relabelled(tmp_path, values))


@pytest.mark.parametrize('values', [[1, 0, 0, 0, 1, None], [1.0, 0, 0, 0, 1, None],
                                    ['True', '0', 'false', '0.0', '1', None]])
def test_labels_of_any_type_that_say_yes_or_no(tmp_path, values):
  made = load(relabelled(tmp_path / 'b', pa.array(values)))
  plain = load(make(tmp_path / 'a'))
  assert dict(zip(made.subject_id, made.label)) == {'1': 1, '2': 0, '3': 0} and made.attrition == plain.attrition


@pytest.mark.parametrize(('place', 'field', 'column'), [
    ('set/data/train/0', 'data.path', 'numeric_value'), ('set/data/train/0', 'data.path', 'time'),
    ('labels/0', 'data.outcomes', 'boolean_value')])
def test_two_columns_of_one_name(tmp_path, place, field, column):
  path = make(tmp_path) / f'{place}.parquet'
  table = pq.read_table(path)
  pq.write_table(table.append_column(column.upper(), table[column]), path)
  with pytest.raises(EagrlError, match=f"^{field}: a file of (data|labels) has two columns '{column}'; keep one$"):
    load(tmp_path)


def test_a_shard_of_static_rows_has_times_of_no_type(tmp_path):
  shards = ([e for e in EVENTS if e[1] is None], [e for e in EVENTS if e[1] is not None])
  make(tmp_path, shards=shards)
  whole = load(tmp_path)
  files = sorted((tmp_path / 'set').rglob('*.parquet'))
  for file in files:
    table = pq.read_table(file)
    if table['time'].null_count == len(table):
      pq.write_table(table.set_column(1, 'time', pa.nulls(len(table))), file)
  again = load(tmp_path)
  assert rows_of(again) == rows_of(whole) and again.sex.tolist() == whole.sex.tolist()
  for file in files:
    table = pq.read_table(file)
    pq.write_table(table.set_column(1, 'time', pa.nulls(len(table))), file)
  with pytest.raises(EagrlError, match="data.path: 'time' in data is empty; write timestamps"):
    load(tmp_path)


def test_missing_and_damaged_files(tmp_path):
  make(tmp_path)
  for change, match in (({'features': None}, 'data.features: a MEDS data set has thousands'),
                        ({'data': 'absent'}, 'data.path: absent holds no parquet'),
                        ({'labels': 'absent'}, 'data.outcomes: absent holds no parquet')):
    with pytest.raises(EagrlError, match=match):
      load(tmp_path, **change)
  shard = tmp_path / 'set' / 'data' / 'train' / '0.parquet'
  shard.write_bytes(shard.read_bytes()[:100])
  with pytest.raises(EagrlError, match='data.path: data is damaged'):
    load(tmp_path)


def write_demo_task(folder: pathlib.Path) -> pathlib.Path:
  """The 17 variables by their items, and death within 30 days of the first 24 hours of intensive care."""
  specs = [{'name': s.name, 'unit': s.unit, 'hard_low': s.hard_low, 'hard_high': s.hard_high,
            'accepted_units': [list(u) for u in s.accepted_units],
            'aliases': [f'LAB//{i.itemid}' for i in (*mimic4_features.CHART, *mimic4_features.LAB)
                        if i.feature == s.name and not i.words and i.unit != 'lb']}
           for s in mimic4_features.FEATURES if not s.levels]
  for spec in specs:
    spec['accepted_units'] += [['units', 1, 0]] if spec['name'] == 'blood pH' else []
  (folder / 'features.yaml').write_text(yaml.safe_dump(specs))
  duckdb.sql(f'''
      COPY (SELECT subject_id, t + INTERVAL 24 HOUR AS prediction_time,
              coalesce(d <= t + INTERVAL 31 DAY, false) AS boolean_value
            FROM (SELECT subject_id, min(time) FILTER (starts_with(code, 'ICU_ADMISSION')) AS t,
                    min(time) FILTER (code = 'MEDS_DEATH') AS d FROM '{DEMO}/data/*/*.parquet' GROUP BY subject_id)
            WHERE d IS NULL OR d > t + INTERVAL 24 HOUR) TO '{folder}/labels.parquet' (FORMAT parquet)''')
  return folder


@demo
def test_demo(tmp_path):
  write_demo_task(tmp_path)
  cohort = meds.load(DEMO, tmp_path / 'labels.parquet', features=tmp_path / 'features.yaml', task='mortality',
                     setting='adults', grid=Grid(6.0, 'last', 24.0))
  found = {(step, unit): count for step, count, unit in cohort.attrition}
  assert (len(cohort), found[('with a label', 'patients')]) == (99, 99) and 5 < cohort.label.sum() < 30
  assert set(cohort.sex.tolist()) == {0, 1} and 18 <= cohort.age.min() and cohort.age.max() < 101
  temperature = cohort.value[cohort.feature == cohort.features.find('temperature')]
  assert 36 < np.median(temperature) < 38 and cohort.hour.max() < 24
