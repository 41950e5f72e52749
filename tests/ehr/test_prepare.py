"""The stage that makes the cohort: splits by name or file, what is left beside it, what is refused before."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil

import mimic4_fixture
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_meds

from configs import defaults
from eagrl_jax.ehr import normalise, splits, store
from eagrl_jax.ehr.records import LATE_STEPS
from eagrl_jax.ehr.sources import mimic4, synthetic
from eagrl_jax.ehr.sources.bounded import Grid
from eagrl_jax.evaluation import leakage
from eagrl_jax.mesh import local_mesh
from eagrl_jax.stages import beside, checks, prepare
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages.context import Context
from eagrl_jax.types import EagrlError

TJH = test_meds.DEMO.parent / 'tjh' / 'time_series_375_prerpocess_en.xlsx'


def csv(tmp_path, n=60, extra=''):
  head = 'patient,time,feature,value\n'
  rows = ''.join(f'k{i},{h},NA,{130 + i % 9}\n' for i in range(n) for h in (0, 5))
  (tmp_path / 'e.csv').write_text(head + rows + extra)
  (tmp_path / 'o.csv').write_text('patient,label\n' + ''.join(f'k{i},{i % 3 // 2}\n' for i in range(n)))
  (tmp_path / 'f.yaml').write_text('- {name: sodium, aliases: [NA], unit: mmol/L, hard_low: 80, hard_high: 200}\n')
  config = defaults.get_config('csv')
  config.data.update(path=str(tmp_path / 'e.csv'), outcomes=str(tmp_path / 'o.csv'), features=str(tmp_path / 'f.yaml'))
  return config


def prepared(config, tmp_path):
  prepare.run(Context(config, tmp_path / 'run', local_mesh(1)))
  return tmp_path / 'run' / 'prepare'


def test_what_is_not_used_lies_beside_the_cohort_and_is_never_logged(tmp_path, caplog):
  config = csv(tmp_path, extra='k1,7,NA,9876543\nk2,7,NA,clotted\n')
  with caplog.at_level(logging.DEBUG, logger='absl'):
    folder = prepared(config, tmp_path)
  rows = pq.read_table(folder / 'rejects.parquet').to_pylist()
  assert sorted((r['subject_id'], r['time'], r['code'], r['reason']) for r in rows) == [
      ('k1', 7, 'sodium', 'outside hard range'), ('k2', 7, 'sodium', 'text')]
  manifest = json.loads((folder / 'manifest.json').read_text())
  assert manifest['rejects'] == 2 and ['outside hard range: sodium', 1, 'values'] in manifest['attrition']
  assert 'sodium' in caplog.text and '9876543' not in caplog.text and 'k1' not in caplog.text.split()
  assert len(store.load(folder).value) == 120


def test_a_stay_that_ends_within_the_window_is_warned_of(tmp_path, caplog):
  config = csv(tmp_path)
  (tmp_path / 'o.csv').write_text('patient,label,until\n' + ''.join(
      f'k{i},{i % 3 // 2},{20 if i == 7 else ""}\n' for i in range(60)))
  config.data.window_hours = 24.0
  with caplog.at_level(logging.WARNING, logger='absl'):
    prepared(config, tmp_path)
  assert 'data.columns.until: of 1 patients it lies within data.window_hours=24; where' in caplog.text


def test_events_after_the_window_are_counted_and_kept():
  cohort = synthetic.generate(synthetic.SyntheticConfig(n=30), 0)
  late = int(np.sum(cohort.hour >= 24))
  found = prepare.with_records(cohort, 24.0)
  assert 0 < late < len(cohort.hour) == len(found.hour)
  assert found.attrition == (*cohort.attrition, ('after the window', late, 'values'))
  assert 'after the window' in LATE_STEPS and prepare.with_records(cohort, 0.0) is cohort


def test_statistics_of_another_cohort_or_other_train_patients_are_refused(tmp_path):
  config = csv(tmp_path)
  folder = prepared(config, tmp_path)
  context = Context(config, tmp_path / 'run', local_mesh(1))
  assert len(data_lib.load(context).cohort) == 60
  own = (folder / 'statistics.json').read_text()
  (tmp_path / 'other').mkdir()
  for change in ({'n': 61}, {'seed': 7}):
    other = csv(tmp_path / 'other', change.get('n', 60))
    other.seed = change.get('seed', config.seed)
    (folder / 'statistics.json').write_text((prepared(other, tmp_path / 'other') / 'statistics.json').read_text())
    with pytest.raises(EagrlError, match='statistics: prepare/statistics.json is of another cohort or other train'):
      data_lib.load(context)
  (folder / 'statistics.json').write_text(own)
  data_lib.load(context)


def test_a_fold_by_name(tmp_path):
  config = csv(tmp_path)
  config.data.protocol = '10fold:3'
  checks._check_csv(config.data)
  folder = prepared(config, tmp_path)
  found = splits.load(folder / 'splits.parquet', store.load(folder).subject_id)
  assert (len(found.train), len(found.valid), len(found.test)) == (48, 6, 6)
  config.data.protocol = 'tjh_140_21_200'
  with pytest.raises(EagrlError, match='is of 361 patients and the cohort has 60'):
    prepared(config, tmp_path)


def test_the_split_file_of_a_protocol_that_draws_all_still_needs_everybody(tmp_path):
  config = csv(tmp_path)
  config.data.protocol = '10fold:3'
  assert splits.drawn_by(prepared(config, tmp_path) / 'splits.parquet') == ''


def test_patients_beyond_a_protocol_are_left_out_and_counted(tmp_path, monkeypatch):
  monkeypatch.setitem(splits.PROTOCOLS, 'mimic4_8750_1250_200', (30, 10, 10))
  config = csv(tmp_path)
  config.data.protocol = 'mimic4_8750_1250_200'
  cohort = store.load(prepared(config, tmp_path))
  assert len(cohort) == 50 and ('not drawn by the protocol', 10, 'patients') in cohort.attrition
  given = tmp_path / 'given.parquet'
  shutil.copyfile(prepared(config, tmp_path) / 'splits.parquet', given)
  drawn = splits.load(given, cohort.subject_id)
  for _ in range(2):  # back again, also the file that this writes
    config.data.update(protocol='', splits=str(given))
    folder = prepared(config, tmp_path)
    again = store.load(folder)
    assert ('not in the split file, which mimic4_8750_1250_200 drew', 10, 'patients') in again.attrition
    found = splits.load(folder / 'splits.parquet', again.subject_id)
    for part in ('train', 'valid', 'test'):
      assert again.subject_id[getattr(found, part)].tolist() == cohort.subject_id[getattr(drawn, part)].tolist()
    shutil.copyfile(folder / 'splits.parquet', given)


@pytest.mark.parametrize(('change', 'match'), [
    ({'protocol': 'ten'}, 'data.protocol='), ({'protocol': '10fold:0', 'splits': 'x.parquet'}, 'leave one empty'),
    ({'decimal': ';'}, 'data.decimal='), ({'decimal': ','}, 'also separates the columns')])
def test_refused_before_any_data_is_read(change, match):
  config = defaults.get_config()
  checks.check(config)
  config.data.update(change)
  with pytest.raises(EagrlError, match=match):
    checks.check(config)


def test_the_splits_of_a_meds_data_set_list_everyone(tmp_path):
  events = [(s, h, 'LAB//220045//bpm', 70 + s) for s in range(1, 9) for h in (1, 2)]
  test_meds.make(tmp_path, events, [(s, 24, bool(s % 2)) for s in range(1, 9)])
  names = ['train'] * 4 + ['tuning'] * 2 + ['held_out'] * 2
  pq.write_table(pa.table({'subject_id': pa.array(range(1, 11), pa.int64()), 'split': [*names, 'train', 'held_out']}),
                 tmp_path / 'subject_splits.parquet')
  config = defaults.get_config('meds')
  config.data.update(path=str(tmp_path / 'set'), outcomes=str(tmp_path / 'labels'),
                     features=str(tmp_path / 'features.yaml'), splits=str(tmp_path / 'subject_splits.parquet'))
  folder = prepared(config, tmp_path)
  cohort = store.load(folder)
  found = splits.load(folder / 'splits.parquet', cohort.subject_id)
  assert sorted(cohort.subject_id[found.test]) == ['7', '8'] and len(found.train) == 4
  assert ('of the split file, not in the cohort', 2, 'patients') in cohort.attrition


@pytest.mark.skipif(not TJH.is_file(), reason='../shared/data/tjh is absent')
def test_the_published_split_of_tjh(tmp_path):
  config = defaults.get_config('tjh')
  config.data.update(path=str(TJH), protocol='tjh_140_21_200')
  folder = prepared(config, tmp_path)
  cohort = store.load(folder)
  found = splits.load(folder / 'splits.parquet', cohort.subject_id)
  positives = [int(cohort.label[r].sum()) for r in (found.train, found.valid, found.test)]
  assert [len(found.train), len(found.valid), len(found.test)] == [140, 21, 200]
  assert sum(positives) == 166 and abs(positives[0] / 140 - positives[1] / 21) < 0.05
  assert np.isfinite(cohort.value).all()


@pytest.mark.parametrize('given', [False, True])
def test_what_is_usual_is_so_among_train_patients_in_the_window(tmp_path, given):
  """Of a file in days: what is measured on day 5 lies behind a window of 48 h. Or with specs of their own."""
  config = csv(tmp_path)
  (tmp_path / 'e.csv').write_text('patient,time,feature,value\n' + ''.join(
      f'k{i},{day},x,{100 + i + 20 * day}\n' for i in range(60) for day in (0, 5)))
  (tmp_path / 'f.yaml').write_text('- {name: x, ref_high: 7}\n')
  config.data.update(features=str(tmp_path / 'f.yaml') if given else '', time_unit='days', window_hours=48.0)
  folder = prepared(config, tmp_path)
  cohort, spec = store.load(folder), store.load(folder).features[0]
  assert cohort.hour.max() == 120
  if given:
    assert (spec.ref_low, spec.ref_high, spec.usual) == (None, 7, False)
    return
  train = splits.load(folder / 'splits.parquet', cohort.subject_id).train
  mine = [100 + int(i[1:]) for i in cohort.subject_id[train]]
  assert (spec.ref_low, spec.ref_high) == pytest.approx(np.quantile(mine, (0.2, 0.8)), abs=0.06) and spec.usual


def test_sources_with_tables_of_their_own_have_usual_ranges_where_asked_for(tmp_path):
  config = defaults.get_config()
  config.data.update(n=60, test=12.0)
  assert not any(spec.usual for spec in store.load(prepared(config, tmp_path / 'a')).features)
  config.data.ranges = 'usual'
  table = store.load(prepared(config, tmp_path / 'b')).features
  assert sum(spec.usual for spec in table) > len(table) / 2
  config.data.ranges = 'textbook'
  with pytest.raises(EagrlError, match="^data.ranges='textbook'"):
    checks.check(config)


@pytest.fixture
def whole(tmp_path, monkeypatch):
  """A prepared run and its data, for a quick audit."""
  monkeypatch.setattr(leakage, 'PERMUTATIONS', 2)
  config = csv(tmp_path)
  config.evaluate.bootstrap = 20
  context = Context(config, tmp_path / 'run', local_mesh(1))
  prepare.run(context)
  return context, data_lib.load(context)


def audit(context, data):
  rows = data.splits.test
  return {c['name']: c for c in beside.audit(context, data, {'rl': np.linspace(0, 1, len(rows))})}


def test_the_audit_says_what_is_in_one_split_alone(whole):
  context, data = whole
  for source, unit in (('csv', 'patients'), ('yaib', 'stays')):
    context.config.data.source = source
    assert [name for name in audit(context, data) if 'two splits' in name] == [f'{unit} in two splits']


def test_the_audit_of_the_expert_sees_no_outcome_of_a_test_patient(whole):
  """Turned round, they change nothing of it; evaluate's they change."""
  context, data = whole
  parts = data.splits
  label = data.cohort.label.copy()
  label[parts.test] = 1 - label[parts.test]
  turned = dataclasses.replace(data, cohort=dataclasses.replace(data.cohort, label=label))
  for part, same in (('valid', True), ('test', False)):
    prob = {'expert': np.linspace(0, 1, len(getattr(parts, part)))}
    one, two = (json.dumps(beside.audit(context, d, prob, part)) for d in (data, turned))
    assert (one == two) == same


def test_the_audit_looks_for_patients_of_two_splits_in_all_three(whole):
  context, data = whole
  parts = data.splits
  shared = dataclasses.replace(parts, valid=np.r_[parts.valid, parts.train[:3], parts.test[:2]],
                               test=np.r_[parts.test, parts.train[3:4]])
  found = audit(context, dataclasses.replace(data, splits=shared))['patients in two splits']
  assert (found['value'], found['warning']) == (6, 'patients are in two splits')


def test_the_audit_fits_the_statistics_again(whole):
  """Of train patients alone, as the run keeps them; not of more, nor of as many others."""
  context, data = whole
  sound = audit(context, data)['inputs normalised by others than train patients']
  assert (sound['value'], sound['warning']) == (0, '')
  train, path = data.splits.train, context.folder('prepare') / 'statistics.json'
  for rows in (np.r_[train, data.splits.test], np.r_[train[1:], data.splits.test[:1]]):
    normalise.save(path, normalise.fit(data.visits, rows, data.cohort.features, data.cohort.age))
    found = audit(context, data)['inputs normalised by others than train patients']
    assert found['value'] == 1 and 'judged' in found['warning']


def test_the_audit_shows_late_rows_of_every_table(tmp_path, monkeypatch):
  monkeypatch.setattr(leakage, 'PERMUTATIONS', 2)
  config = defaults.get_config('mimic4')
  config.evaluate.bootstrap = 20
  cohort = mimic4.load(mimic4_fixture.write(tmp_path), task='mortality', index='icu', grid=Grid(6.0, 'last', 48.0))
  everybody = np.arange(len(cohort))  # five, of whom two die: too few for parts
  context, visits = Context(config, tmp_path, local_mesh(1)), data_lib.grid(cohort, config.data)
  normalise.save(context.folder('prepare') / 'statistics.json',
                 normalise.fit(visits, everybody, cohort.features, cohort.age))
  checks = audit(context, data_lib.Data(cohort, visits, splits.Splits(everybody, everybody[:0], everybody), None))
  assert {name: c['value'] for name, c in checks.items() if name.startswith('dropped')} == {
      'dropped: chartevents: after the window': 3, 'dropped: labevents: charted in the window, stored after it': 1}
