"""Predictions as meds-evaluation reads them, and our figures against its own (tests/golden/meds_evaluation).

Equal by definition: AUROC, AUPRC (average precision), Brier. Not equal: calibration error. Ours, of Naeini 2015,
weights ten bins by their patients, and a value on an edge belongs to the bin above; the package's is the plain mean
over such bins, and an edge belongs to the bin below.
"""

from __future__ import annotations

import datetime
import json
import pathlib

import aces_fixture
import make_meds_evaluation_golden as golden
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import test_meds
from ml_collections import ConfigDict

from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.records import Cohort
from eagrl_jax.ehr.splits import Splits
from eagrl_jax.evaluation import meds_predictions, metrics, pseudonyms
from eagrl_jax.mesh import local_mesh
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages import evaluate
from eagrl_jax.stages import meds_predictions as stage
from eagrl_jax.stages.context import Context
from eagrl_jax.types import EagrlError

GOLDEN = pathlib.Path(golden.__file__).parent / 'meds_evaluation'
EXPECTED = json.loads((GOLDEN / 'expected.json').read_text())
SAME = {'roc_auc_score': metrics.auroc, 'average_precision_score': metrics.auprc, 'brier_score': metrics.brier}
ARMS = list(EXPECTED['arms'])
SUBJECT, TIME, LABEL, PROBS = golden.patients()
EPOCH = datetime.datetime(1970, 1, 1)


def figures(arm):
  return EXPECTED['arms'][arm]['samples_equally_weighted']


def stored(arm):
  """What the package read, as numpy columns."""
  return {name: column.to_numpy() for name, column in
          zip(meds_predictions.SCHEMA.names, pq.read_table(GOLDEN / f'{arm}.parquet').columns)}


def test_its_schema_is_ours():
  """Column for column: the script had the package validate the files as they stand, without a cast."""
  assert {f.name: str(f.type) for f in meds_predictions.SCHEMA}.items() <= EXPECTED['schema'].items()
  assert set(EXPECTED['required']) <= set(meds_predictions.SCHEMA.names) and not EXPECTED['extra_columns']


@pytest.mark.parametrize('arm', ARMS)
def test_what_it_judged_is_what_an_evaluation_writes(arm):
  table = pq.read_table(GOLDEN / f'{arm}.parquet')
  assert table.schema.equals(meds_predictions.SCHEMA) and table.equals(golden.tables()[arm])
  assert table['subject_id'].to_pylist()[-1] == golden.LARGEST and table['prediction_time'][0].as_py().year == 2150


@pytest.mark.parametrize('arm', ARMS)
def test_our_figures_are_its_own(arm):
  file = stored(arm)
  for name, metric in SAME.items():
    assert metric(file['boolean_value'], file['predicted_boolean_probability']) == pytest.approx(
        figures(arm)[name], rel=0, abs=1e-12), name
    assert metric(LABEL, PROBS[arm]) == pytest.approx(figures(arm)[name], rel=0, abs=1e-8), name  # before float32
  right = file['predicted_boolean_value'] == file['boolean_value']
  assert right.mean() == pytest.approx(figures(arm)['binary_accuracy'], abs=1e-12)
  # One row a patient: its way of giving every subject the same weight changes nothing.
  assert EXPECTED['arms'][arm]['subjects_equally_weighted'] == pytest.approx(figures(arm), rel=0, abs=1e-12)


def plain_gap(prob, place):
  """Mean over the bins used of their gaps; `place` rounds ten times a probability to its bin."""
  bins = np.clip(place(10 * prob), 0, 9)
  return np.mean([abs(LABEL[bins == b].mean() - prob[bins == b].mean()) for b in np.unique(bins)])


def test_its_calibration_error_is_the_plain_mean_with_edges_in_the_bin_below():
  below = lambda tenths: np.ceil(tenths) - 1
  for arm in ARMS:
    prob = stored(arm)['predicted_boolean_probability'].astype(np.float64)
    assert plain_gap(prob, below) == pytest.approx(figures(arm)['calibration_error'], rel=0, abs=1e-12)
    weighted = metrics.expected_calibration_error(LABEL, PROBS[arm])
    assert abs(weighted - figures(arm)['calibration_error']) > 1e-3
  assert (PROBS['policy'] == 0.5).any()
  assert abs(plain_gap(PROBS['policy'], np.floor) - figures('policy')['calibration_error']) > 1e-6


@pytest.mark.parametrize(('ids', 'found'), [
    (['7', '-3', '0', str(2**63 - 1)], [7, -3, 0, 2**63 - 1]), (['7', 'p8'], None), (['7', '007'], None),
    (['7', ' 8'], None), (['1_0', '7'], None), (['7.0', '8'], None), (['7', str(2**63)], None)])
def test_ids_are_whole_numbers_or_names(ids, found):
  got = meds_predictions.integers(np.array(ids))
  assert got is None if found is None else got.tolist() == found and got.dtype == np.int64


def test_what_is_no_probability_is_refused():
  with pytest.raises(EagrlError, match='prob must lie in'):
    meds_predictions.table(SUBJECT[:2], TIME[:2], [0, 1], [0.5, 1.5], 0.5)


def run_of(folder, ids, plain=False, source='csv', outcomes=''):
  """A run's context and cohort; patient i is measured at hours 0 and i + 0.5."""
  n = len(ids)
  hour = np.stack([np.zeros(n), np.arange(n) + 0.5], 1).ravel()
  cohort = Cohort(
      name='toy', task='mortality', setting='', features=FeatureTable((FeatureSpec('a'),)), subject_id=np.array(ids),
      age=np.full(n, 50, np.float32), sex=np.zeros(n, np.int8), label=(np.arange(n) % 2).astype(np.int8),
      patient=np.repeat(np.arange(n), 2).astype(np.int32), hour=hour.astype(np.float32),
      feature=np.zeros(2 * n, np.int16), value=np.ones(2 * n, np.float32), attrition=())
  config = ConfigDict({
      'seed': 0, 'evaluate': {'threshold': 0.4, 'plain_ids': plain},
      'data': {'source': source, 'outcomes': str(outcomes), 'bin_hours': 1.0, 'max_visits': 4, 'aggregate': 'mean',
               'window_hours': 0.0}})
  rows = np.arange(n)
  data = data_lib.Data(cohort, data_lib.grid(cohort, config.data), Splits(rows[:0], rows[:0], rows), expert=None)
  return Context(config, folder, local_mesh(1)), data


def test_a_file_an_arm_in_the_order_of_the_predictions(tmp_path):
  context, data = run_of(tmp_path, [f'p{i}' for i in range(6)])
  rows = np.array([4, 1, 3])
  label, probs = data.cohort.label[rows], {'rl': np.array([0.4, 0.9, 0.1]), 'expert': np.array([0.2, 0.3, 0.7])}
  ids = pseudonyms.shown(data.cohort.subject_id[rows], tmp_path, plain=False)
  evaluate.write_predictions(context, data, rows, label, probs, ids)
  stage.write(context, data, rows, label, probs)
  ours = pq.read_table(tmp_path / 'evaluate' / 'predictions.parquet')
  assert {p.name for p in (tmp_path / 'evaluate' / 'meds').iterdir()} == {'rl.parquet', 'expert.parquet'}
  for arm in probs:
    table = pq.read_table(tmp_path / 'evaluate' / 'meds' / f'{arm}.parquet')
    mine = ours.filter(pc.equal(ours['arm'], arm))
    assert table.schema.equals(meds_predictions.SCHEMA)
    assert table['subject_id'].to_pylist() == [int(i[:15], 16) for i in mine['subject_id'].to_pylist()]
    assert table['prediction_time'].to_pylist() == [EPOCH + datetime.timedelta(hours=int(i) + 0.5) for i in rows]
    for name in ('boolean_value', 'predicted_boolean_value'):
      assert table[name].equals(mine[name])
    name = 'predicted_boolean_probability'
    assert table[name].to_pylist() == pytest.approx(mine[name].to_pylist(), rel=1e-7)
    if arm == 'rl':
      assert table['predicted_boolean_value'].to_pylist() == [True, True, False]  # from the threshold on


@pytest.mark.parametrize(('ids', 'plain', 'subject'), [
    (('31', '17', '5'), False, None), (('31', '17', '5'), True, [31, 17, 5]), (('a', '17', '5'), True, None)])
def test_ids_and_times_are_the_sources_only_when_asked_for(tmp_path, ids, plain, subject):
  labels = tmp_path / 'labels.parquet'
  pq.write_table(pa.table({'subject_id': ids, 'prediction_time': [test_meds.moment(h) for h in (9, 8, 7)],
                           'boolean_value': [True, False, True]}), labels)
  whom, when = stage.whom_and_when(*run_of(tmp_path, ids, plain, 'meds', labels))
  if subject is None:
    subject = pseudonyms.numbers(ids, pseudonyms.salt(tmp_path)).tolist()
    assert len({*subject, 31, 17, 5, 0, 1, 2}) == 9
  assert whom.tolist() == subject and whom.dtype == np.int64 and when.dtype == 'datetime64[us]'
  epoch = [EPOCH + datetime.timedelta(hours=h) for h in (0.5, 1.5, 2.5)]
  assert when.tolist() == ([test_meds.moment(h) for h in (9, 8, 7)] if plain else epoch)


def test_other_sources_keep_no_calendar(tmp_path):
  _, when = stage.whom_and_when(*run_of(tmp_path, ['31', '17'], plain=True))
  assert when.tolist() == [EPOCH + datetime.timedelta(hours=h) for h in (0.5, 1.5)]


@pytest.mark.parametrize('kind', ['labels', 'windows'])
def test_the_times_are_those_that_the_labels_were_taken_at(kind):
  """Of ACES's own shards: 24 hours after the first admission that it labels, whichever file holds it."""
  first = {str(s): stays[0][0] for s, stays in aces_fixture.STAYS.items() if s != 4}
  when = stage.first_labelled(GOLDEN.parent / 'aces' / kind, np.array(list(first)))
  assert when.tolist() == [test_meds.moment(hour + 24) for hour in first.values()]


def shard(folder, name, hours, values, zone=None, unit='us'):
  table = pa.table({'subject_id': pa.array([8] * len(hours), pa.int64()),
                    'prediction_time': pa.array([test_meds.moment(h) for h in hours], pa.timestamp('us', zone)),
                    'boolean_value': pa.array(values, pa.bool_()), 'id': pa.array(range(len(hours)))})
  pq.write_table(table.set_column(1, 'prediction_time', table['prediction_time'].cast(pa.timestamp(unit, zone))),
                 folder / name)


@pytest.mark.parametrize('zone', [None, 'UTC', 'Europe/Berlin'])
def test_times_without_a_label_do_not_count_and_any_resolution_does(tmp_path, monkeypatch, zone):
  monkeypatch.setenv('TZ', 'America/New_York')
  shard(tmp_path, '0.parquet', [3, 50, None], [None, True, True], zone)
  shard(tmp_path, '1.parquet', [40, 60], [True, False], zone, 'ms')
  assert stage.first_labelled(tmp_path, np.array(['8'])).tolist() == [test_meds.moment(40)]


def test_files_that_broke_or_changed_are_one_line_without_an_id(tmp_path):
  path = tmp_path / 'labels.parquet'
  path.write_bytes(b'PAR1 no more')
  with pytest.raises(EagrlError, match='^data.outcomes: labels.parquet is damaged'):
    stage.first_labelled(path, np.array(['8']))
  shard(tmp_path, path.name, [40], [True])
  with pytest.raises(EagrlError, match='^data.outcomes: labels.parquet has changed') as caught:
    stage.first_labelled(path, np.array(['8', '771']))
  assert '771' not in str(caught.value)
