"""Labels that ACES 0.7.3 extracted of made-up patients (tests/golden/make_aces_golden.py), read as a run reads them."""

from __future__ import annotations

import pathlib
import shutil

import aces_fixture
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from eagrl_jax.ehr.sources import bounded, meds
from eagrl_jax.ehr.sources.bounded import Grid
from eagrl_jax.types import EagrlError

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'aces'
# Patient 4 died within the first day, which the task leaves out; patient 3 is labelled twice and used once.
OUTCOMES = {'1': 1, '2': 0, '3': 0, '5': 0, '6': 1, '8': 1, '9': 0}


def load(folder, labels, window=24.0):
  return meds.load(folder / 'set', labels, features=folder / 'features.yaml', task='mortality', setting='patients',
                   grid=Grid(1.0, 'mean', window))


def outcomes(cohort):
  return dict(zip(cohort.subject_id.tolist(), cohort.label.tolist()))


def steps(cohort):
  return {(step, unit): count for step, count, unit in cohort.attrition}


@pytest.fixture
def folder(tmp_path):
  return aces_fixture.write(tmp_path)


@pytest.mark.parametrize('kind', ['labels', 'windows'])
def test_its_files_are_labels_with_or_without_triggers_and_windows(folder, kind):
  have = pq.read_schema(GOLDEN / kind / 'train' / '0.parquet').names
  assert ('trigger' in have) == ('target.end_summary' in have) == (kind == 'windows')
  cohort = load(folder, GOLDEN / kind)
  assert outcomes(cohort) == OUTCOMES
  found = steps(cohort)
  assert found['labels read', 'rows'] == 9 and found['not the first prediction time of a patient', 'rows'] == 1
  assert found['without any observation', 'patients'] == 1 and aces_fixture.SILENT == 7
  assert found['after the prediction time', 'rows'] == 7 + 4  # hour 30 of every admission, the second one of a patient
  # Hours count from the admission: the window is the 24 hours before ACES's index_timestamp.
  hours = {s: cohort.hour[cohort.patient == i].round(3).tolist() for i, s in enumerate(cohort.subject_id)}
  assert all(h == [1, 10, 23] for h in hours.values())


def test_one_shard_is_enough(folder):
  cohort = load(folder, GOLDEN / 'labels' / 'held_out' / '0.parquet')
  assert outcomes(cohort) == {k: OUTCOMES[k] for k in ('1', '3', '5', '9')}


def test_labels_and_windows_in_one_folder_count_once(folder):
  cohort = load(folder, GOLDEN)
  assert outcomes(cohort) == OUTCOMES
  assert steps(cohort)['the same label again', 'rows'] == 9
  assert steps(cohort)['not the first prediction time of a patient', 'rows'] == 1


def rewritten(folder, change, shards=('train/0', 'held_out/0')):
  """The golden labels, each of these shards after `change(table, shard)`."""
  shutil.copytree(GOLDEN / 'labels', folder / 'labels_too')
  for shard in shards:
    path = folder / 'labels_too' / f'{shard}.parquet'
    pq.write_table(change(pq.read_table(path), shard), path)
  return folder / 'labels_too'


def retimed(kind):
  return lambda table, shard: table.set_column(1, 'prediction_time', table['prediction_time'].cast(kind))


def with_zone(folder, kind):
  """The data set's own times in another type."""
  for path in (folder / 'set').rglob('*.parquet'):
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, 'time', table['time'].cast(kind)), path)


@pytest.mark.parametrize('kind', [pa.timestamp('s'), pa.timestamp('ms'), pa.timestamp('ns')])
@pytest.mark.parametrize('shards', [('train/0',), ('train/0', 'held_out/0')])
def test_any_resolution_of_all_shards_or_one(folder, kind, shards):
  cohort = load(folder, rewritten(folder, retimed(kind), shards))
  assert outcomes(cohort) == OUTCOMES and cohort.hour.max() == 23


@pytest.mark.parametrize('zone', ['UTC', 'Europe/Berlin'])
@pytest.mark.parametrize('unit', ['us', 'ns'])
def test_times_with_a_zone_are_instants_wherever_the_machine_stands(folder, monkeypatch, zone, unit):
  with_zone(folder, pa.timestamp('us', 'UTC'))
  labels = rewritten(folder, retimed(pa.timestamp(unit, zone)))
  for place in ('America/New_York', 'Asia/Kolkata'):
    monkeypatch.setenv('TZ', place)
    cohort = load(folder, labels)
    assert outcomes(cohort) == OUTCOMES and cohort.hour.min() == 1 and cohort.hour.max() == 23
    assert np.nanmin(cohort.age) > 40  # also of zoned times
  with bounded.database() as db:
    assert db.execute("SELECT current_setting('TimeZone')").fetchone() == ('UTC',)


def test_empty_shards_are_passed_over(folder):
  labels = rewritten(folder, lambda table, _: table.slice(0, 0), ('train/0',))
  assert outcomes(load(folder, labels)) == {k: OUTCOMES[k] for k in ('1', '3', '5', '9')}


def nothing(name):
  def change(table, _):
    at = table.schema.get_field_index(name)
    return table.set_column(at, name, pa.nulls(len(table), table.schema.field(name).type))
  return change


def relabelled(table, _):
  return pa.concat_tables([table, table.set_column(2, 'boolean_value', pc.invert(table['boolean_value']))])


@pytest.mark.parametrize(('change', 'shards', 'match'), [
    (relabelled, ('train/0',), '3 patients have two different labels at one prediction_time; keep one'),
    (retimed(pa.timestamp('us', 'UTC')), ('train/0',), "some files of labels_too write 'prediction_time' with a time"),
    (retimed(pa.timestamp('us', 'UTC')), ('train/0', 'held_out/0'), 'one has a time zone and the other has none'),
    (lambda t, _: t.set_column(1, 'prediction_time', t['prediction_time'].cast(pa.string())), ('train/0',),
     "'prediction_time' in labels_too is of type string; write timestamps"),
    (lambda t, _: t.set_column(0, 'subject_id', t['subject_id'].cast(pa.float64())), ('train/0',),
     "'subject_id' in labels_too is of type double; write whole numbers"),
    (nothing('boolean_value'), ('train/0', 'held_out/0'), "'boolean_value' is empty in all 9 labels; give a yes"),
    (nothing('prediction_time'), ('train/0', 'held_out/0'), "'prediction_time' is empty in all 9 labels; of ACES"),
    (lambda t, _: t.drop_columns('boolean_value'), ('train/0', 'held_out/0'), "has no column 'boolean_value'")])
def test_what_is_no_such_label_set_is_one_line(folder, change, shards, match):
  with pytest.raises(EagrlError, match=f'^data.outcomes: .*{match}') as caught:
    load(folder, rewritten(folder, change, shards))
  assert '\n' not in str(caught.value) and '2150' not in str(caught.value)


def test_the_same_row_twice_counts_once(folder):
  labels = rewritten(folder, lambda table, _: pa.concat_tables([table, table]))
  cohort = load(folder, labels)
  assert outcomes(cohort) == OUTCOMES and steps(cohort)['the same label again', 'rows'] == 9
