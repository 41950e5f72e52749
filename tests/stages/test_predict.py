"""A finished run on new patients: what it reads, what it refuses, what it leaves."""

import csv
import dataclasses
import datetime
import errno
import json
import logging
import os
import pathlib
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from absl import logging as absl_logging
from ml_collections import ConfigDict

from eagrl_jax.ehr import splits, store
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.evaluation import pseudonyms
from eagrl_jax.stages import finished, foreign, graph, inference, predict, transfer
from eagrl_jax.types import EagrlError

ROOT = pathlib.Path(__file__).parents[2]


def config(**fields):
  sys.path.insert(0, str(ROOT))
  try:
    from configs import predict as file
  finally:
    sys.path.remove(str(ROOT))
  c = file.get_config()
  c.predict.update(fields)
  return c


def write(path, header, rows):
  with path.open('w', newline='') as f:
    csv.writer(f).writerows([header, *rows])
  return str(path)


@pytest.fixture(scope='module')
def run(finished, tmp_path_factory):
  """A finished run of this file's own: others must not see what it adds."""
  workdir = tmp_path_factory.mktemp('predict') / 'w'
  shutil.copytree(finished, workdir)
  return workdir


@pytest.fixture(scope='module')
def cohort(run):
  """The run's test patients."""
  whole = store.load(run / 'prepare')
  return whole.take(splits.load(run / 'prepare' / 'splits.parquet', whole.subject_id).test)


def events(cohort, name=lambda spec: spec.name, value=lambda spec, v: v, rows=None):
  """A cohort's events as rows of a long CSV with units."""
  rows = range(len(cohort)) if rows is None else rows
  out = []
  for p, hour, f, v in zip(cohort.patient, cohort.hour, cohort.feature, cohort.value):
    if p in rows:
      spec = cohort.features[int(f)]
      out.append((cohort.subject_id[p], float(hour), name(spec), repr(float(value(spec, v))), spec.unit))
  return out


HEADER = ('patient', 'time', 'feature', 'value', 'unit')


@pytest.fixture(scope='module')
def long(cohort, tmp_path_factory):
  """The test patients as somebody else writes them: aliases, lactate in another unit, a feature of their own."""
  folder = tmp_path_factory.mktemp('data')
  scale, offset = cohort.features[cohort.features.find('lactate')].accepted_units[0][1:]
  rows = []
  for patient, hour, name, value, unit in events(cohort, lambda s: f' {(s.aliases or (s.name,))[0]}_'):
    if cohort.features.find(name) == cohort.features.find('lactate'):
      value, unit = repr((float(value) - offset) / scale), 'mg/dL'
    rows.append((patient, hour, name, value, unit))
  rows += [(patient, 0, 'moon phase', 3, '') for patient in cohort.subject_id]
  rows.append(('not in statics', 1, 'lactate', 2, 'mmol/L'))
  return write(folder / 'new.csv', HEADER, rows)


@pytest.fixture(scope='module')
def statics(cohort, tmp_path_factory):
  """Age and sex, beside an outcome that no reader could take."""
  return write(tmp_path_factory.mktemp('statics') / 's.csv', ('patient', 'age', 'sex', 'label'),
               [(i, repr(float(a)), 'fm'[s], 'secret') for i, a, s in zip(cohort.subject_id, cohort.age, cohort.sex)])


def read(workdir, name):
  folder = workdir / 'predictions' / name
  lines = [json.loads(line) for line in (folder / 'reasoning.jsonl').read_text().splitlines()]
  return pq.read_table(folder / 'predictions.parquet').to_pydict(), lines, json.loads(
      (folder / 'manifest.json').read_text())


def test_new_patients_meet_the_expert_that_the_run_trained(run, cohort, long, statics, capsys):
  """The same people under aliases and in another unit get the probabilities that the run itself gave them."""
  said = []
  handler = logging.Handler()
  handler.emit = lambda record: said.append(record.getMessage())
  absl_logging.get_absl_logger().addHandler(handler)
  level = absl_logging.get_verbosity()
  absl_logging.set_verbosity(absl_logging.INFO)
  try:
    predict.run(config(path=long, statics=statics), run)
  finally:
    absl_logging.set_verbosity(level)
    absl_logging.get_absl_logger().removeHandler(handler)
  table, lines, manifest = read(run, 'new')
  ids = table['subject_id']
  assert len(ids) == 25 == manifest['patients'] and not set(ids) & set(cohort.subject_id)
  whole = store.load(run / 'prepare')
  key = pseudonyms.salt(run)  # the run's own: its patients are known again in what is predicted later
  known = dict(zip(pseudonyms.of(whole.subject_id, key), np.load(run / 'expert/prob.npy').mean(0)))
  got = dict(zip(ids, table['expert_probability']))
  mine = pseudonyms.of(cohort.subject_id, key)
  np.testing.assert_allclose([got[i] for i in mine], [known[i] for i in mine], atol=2e-5)
  assert [line['subject_id'] for line in lines] == ids and all(line['text'] for line in lines)
  names = set(whole.features.names)
  assert all(set(line['features']) <= names and line['arm'] == 'rl' for line in lines)
  assert all(0 <= p <= 1 for k in ('predicted_boolean_probability', 'parsed', 'refused') for p in table[k])
  assert manifest['features']['unknown'] == 1 and set(manifest['features']['mapped']) <= names
  shown = capsys.readouterr()
  text = ' '.join(said) + shown.out + shown.err
  assert '1 of the data are unknown' in text and not any(i in text for i in cohort.subject_id)


def test_the_same_again_is_kept_and_other_content_moves_it_aside(run, cohort, long, statics, tmp_path):
  predict.run(config(path=long, statics=statics), run)
  place = run / 'predictions' / 'new' / 'predictions.parquet'
  before = place.read_bytes(), place.stat().st_mtime_ns
  predict.run(config(path=long, statics=statics), run)
  assert (place.read_bytes(), place.stat().st_mtime_ns) == before
  few = write(tmp_path / 'new.csv', HEADER, events(cohort, rows=range(5)))
  predict.run(config(path=few, statics=statics), run)
  aside = [p for p in (run / 'superseded').iterdir() if p.name.startswith('predictions-new-')]
  assert [(p / 'predictions.parquet').read_bytes() for p in aside] == [before[0]]
  # A patient's answers do not depend on who else is asked.
  all_of_them, some = pq.read_table(aside[0] / 'predictions.parquet').to_pydict(), read(run, 'new')[0]
  by_id = dict(zip(all_of_them['subject_id'], all_of_them['predicted_boolean_probability']))
  assert len(some['subject_id']) == 5
  np.testing.assert_allclose(some['predicted_boolean_probability'], [by_id[i] for i in some['subject_id']], atol=1e-6)
  assert not [p for p in (run / 'predictions').iterdir() if p.name.startswith('.')]


def test_predictions_that_were_cut_off_go_on_with_the_next_batch(run, cohort, long, statics, tmp_path, monkeypatch):
  """In the same folder name: from the same patients, and from others, of whom nothing is known yet."""
  class Killed(Exception):
    pass

  asked, sample = [], inference.sample

  def count(*args):
    asked.append(1)
    if len(asked) == dies_at:
      raise Killed
    return sample(*args)

  monkeypatch.setattr(inference, 'sample', count)
  few = write(tmp_path / 'few.csv', HEADER, events(cohort, rows=range(5)))
  whole, cut = config(path=long, statics=statics, name='whole'), config(path=long, statics=statics, name='cut')
  dies_at = 0
  predict.run(whole, run)
  dies_at = len(asked) + 2  # in the second batch, of 9
  with pytest.raises(Killed):
    predict.run(cut, run)
  asked, dies_at = [], 0
  predict.run(cut, run)
  assert len(asked) == 1 and not [p for p in (run / 'predictions').iterdir() if p.name.startswith('.')]
  (run / 'predictions/cut/started.json').touch()  # killed before it went
  predict.run(cut, run)
  assert {p.name for p in (run / 'predictions/cut').iterdir()} == {
      'manifest.json', 'predictions.parquet', 'reasoning.jsonl'}
  for name in ('predictions.parquet', 'reasoning.jsonl'):
    assert (run / 'predictions/cut' / name).read_bytes() == (run / 'predictions/whole' / name).read_bytes()
  asked, dies_at = [], 2
  other = config(path=long, statics=statics, name='other')
  with pytest.raises(Killed):
    predict.run(other, run)
  asked, dies_at = [], 0
  predict.run(config(path=few, statics=statics, name='other'), run)
  assert len(asked) == 1 and len(read(run, 'other')[0]['subject_id']) == 5


def test_a_wide_file_with_plain_ids_and_one_feature(run, cohort, tmp_path):
  lactate = [row for row in events(cohort) if row[2] == 'lactate']
  people = sorted({row[0] for row in lactate})
  wide = write(tmp_path / 'wide.csv', ('patient', 'time', 'lactate', 'shoe size'),
               [('unit', '', 'mmol/L', ''), *[(p, h, v, 41) for p, h, _, v, _ in lactate]])
  c = config(path=wide, source='wide_csv', name='one', policy='base')
  c.evaluate.plain_ids = True
  predict.run(c, run)
  table, _, manifest = read(run, 'one')
  assert sorted(table['subject_id']) == people
  assert manifest['features']['mapped'] == ['lactate'] and manifest['features']['unknown'] == 1
  assert len(manifest['features']['lacking']) == len(cohort.features) - 1
  assert manifest['made_from']['policy'] == 'base'


def stays(folder):
  """A set of PhysioNet 2012 of two patients in intensive care, without outcomes."""
  folder.mkdir()
  for number, rate in ((11, 73), (12, 120)):
    rows = ['Time,Parameter,Value', f'00:00,RecordID,{number}', '00:00,Age,54', '00:00,Gender,0', f'00:30,HR,{rate}',
            '01:00,Lactate,2.5']
    (folder / f'{number}.txt').write_text('\n'.join(rows) + '\n')
  return folder


def test_patients_of_another_source_need_no_outcomes(run, tmp_path):
  c = config(path=str(stays(tmp_path / 'set-new')), source='physionet2012', policy='base')
  c.evaluate.plain_ids = True
  predict.run(c, run)
  table, lines, manifest = read(run, 'set-new')
  assert sorted(table['subject_id']) == ['11', '12'] and len(lines) == 2
  assert {'heart rate', 'lactate'} <= set(manifest['features']['mapped'])
  assert not [step for step, *_ in manifest['attrition'] if 'outcome' in step]


def test_meds_patients_of_a_run_that_knows_no_codes(run, tmp_path):
  """The data's codes are aliases of a table of their own, whose features meet the run's by name and unit."""
  origin = datetime.datetime(2150, 3, 1)
  rows = [(s, origin + datetime.timedelta(hours=h), code, v) for s in (7, 8) for h, code, v in (
      (1, 'LAB//1', 70 + s), (5, 'LAB//2', 18.0 * s), (90, 'LAB//1', 200))]
  (tmp_path / 'set').mkdir()
  table = lambda names, rows: pa.table(dict(zip(names, map(list, zip(*rows)))))
  pq.write_table(table(('subject_id', 'time', 'code', 'numeric_value'), rows), tmp_path / 'set' / '0.parquet')
  pq.write_table(table(('subject_id', 'prediction_time'), [(s, origin + datetime.timedelta(hours=48)) for s in (7, 8)]),
                 tmp_path / 'when.parquet')
  (tmp_path / 'codes.yaml').write_text(
      '- {name: heart rate, unit: /min, aliases: [LAB//1]}\n- {name: lactate, unit: mg/dL, aliases: [LAB//2]}\n')
  given = dict(path=str(tmp_path / 'set'), source='meds', policy='base', statics=str(tmp_path / 'when.parquet'))
  with pytest.raises(EagrlError, match='^predict.features: a MEDS data set has .* --config.predict.features='):
    predict.run(config(**given), run)
  c = config(**given, features=str(tmp_path / 'codes.yaml'))
  c.evaluate.plain_ids = True
  predict.run(c, run)
  found, _, manifest = read(run, 'set')
  assert sorted(found['subject_id']) == ['7', '8']
  assert sorted(manifest['features']['mapped']) == ['heart rate', 'lactate']
  steps = [tuple(step) for step in manifest['attrition']]
  assert ('after the prediction time', 2, 'rows') in steps and ('read', 4, 'values') in steps, steps
  codes = c.predict.features
  for wrong, match in ((dict(features='absent.yaml'), 'predict.features'),
                       (dict(source='csv', features=codes, path=codes), 'new patients of csv bring their own names')):
    with pytest.raises(EagrlError, match=match):
      predict.run(config(**(given | wrong)), run)


def test_the_run_s_own_question_is_asked(run, cohort, tmp_path):
  own = ConfigDict(json.loads((run / 'config.json').read_text()))
  trained = dataclasses.replace(cohort, task='readmission')
  c = config(path=str(stays(tmp_path / 'set-new')), source='physionet2012')
  new, _ = predict.read(c.predict, own, trained)
  assert (new.task, new.setting) == ('readmission', cohort.setting) and not new.label.any()
  c.predict.statics = write(tmp_path / 'Outcomes-new.txt', ('RecordID', 'In-hospital_death'), [(11, 1)])
  assert store.fingerprint(predict.read(c.predict, own, trained)[0]) == store.fingerprint(new)  # given, and not read


def test_new_patients_are_read_with_the_codes_for_missing_of_the_run(run, cohort, tmp_path, monkeypatch):
  own, given = ConfigDict(json.loads((run / 'config.json').read_text())), []
  monkeypatch.setattr(predict.prepare, 'read_source', lambda *_, known, **__: (given.append(known), cohort)[1])
  predict.read(config(path=str(tmp_path), source='meds').predict, own, cohort)
  assert given == [cohort.features]


def test_the_last_days_before_an_outcome_are_no_window(run, cohort, tmp_path):
  own = ConfigDict(json.loads((run / 'config.json').read_text()))
  own.data.update(window_hours=0.0)
  with pytest.raises(EagrlError, match='^data.window_hours=0: .* with --config.data.window_hours above 0'), \
      foreign.speaking_of('predict'):
    predict.read(config(path=str(tmp_path), source='mimic4').predict, own, cohort)


@pytest.mark.parametrize(('own', 'new', 'unit'), [
    ({}, '', 'hours'), ({'time_unit': 'days'}, '', 'days'), ({'time_unit': 'days'}, 'minutes', 'minutes')])
def test_times_have_the_runs_unit_or_their_own(run, long, monkeypatch, own, new, unit):
  """The first is a run of before there was the field."""
  seen = []
  monkeypatch.setattr(foreign, 'read_unlabelled', lambda *_, time_unit, **__: seen.append(time_unit))
  theirs = json.loads((run / 'config.json').read_text())
  theirs['data'].pop('time_unit')
  theirs['data'] |= own
  predict.read(config(path=long, time_unit=new).predict, ConfigDict(theirs), store.load(run / 'prepare'))
  assert seen == [unit]


def test_an_unknown_unit_of_time_is_refused(run, long):
  with pytest.raises(EagrlError, match="^predict.time_unit='weeks'"):
    predict.run(config(path=long, time_unit='weeks'), run)


def test_a_dry_run_only_looks(run, long, capsys):
  predict.run(config(path=long, name='dry'), run, dry_run=True)
  assert 'features of the run' in capsys.readouterr().out and not (run / 'predictions' / 'dry').exists()


@pytest.mark.parametrize('stage', ['predict', 'transfer'])
def test_a_dry_run_holds_nothing(stage, run, long, monkeypatch):
  """It works on a folder that another run holds, or that nobody may write to."""
  files = lambda: {path: path.stat().st_mtime_ns for path in run.rglob('*')}
  (run / '.lock').unlink(missing_ok=True)
  before = files()
  if stage == 'transfer':
    monkeypatch.syspath_prepend(str(ROOT))
    from configs import transfer as file
    c = file.get_config()
    c.seed = 7
    c.data.n = 40
    transfer.run(c, run, dry_run=True)
  else:
    predict.run(config(path=long, name='dry'), run, dry_run=True)
  assert files() == before


def test_what_the_disk_refuses_is_a_line_here_too(run):
  mesh = config().mesh
  full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  with pytest.raises(EagrlError, match='--workdir=.* cannot be written: No space left on device; make room'), \
      finished.opened(run, mesh, ('rl', 'expert')):
    raise full
  (run / '.lock').unlink()
  (run / '.lock').mkdir()
  try:
    with pytest.raises(EagrlError, match=r'cannot be written: Is a directory \(\.lock\)'), \
        finished.opened(run, mesh, ('rl', 'expert')):
      pass
  finally:
    (run / '.lock').rmdir()


def stranger(folder):
  return {'path': write(folder / 'x.csv', HEADER, [('p1', 0, 'moon phase', 1, '')])}


def other_unit(folder):
  return {'path': write(folder / 'x.csv', HEADER, [('p1', 0, 'lactate', 1, 'furlong')])}


def no_column(folder):
  return {'path': write(folder / 'x.csv', ('id', *HEADER[1:]), [('p1', 0, 'lactate', 1, 'mmol/L')])}


def ages_in_words(folder):
  return {'path': write(folder / 'x.csv', HEADER, [('p1', 0, 'lactate', 1, 'mmol/L')]),
          'statics': write(folder / 's.csv', ('patient', 'age'), [('p1', 'old')])}


def statics_of(*rows, header=('patient', 'age'), **fields):
  return lambda folder: {'path': write(folder / 'x.csv', HEADER, [('001', 0, 'lactate', 1, 'mmol/L')]),
                         'statics': write(folder / 's.csv', header, rows), **fields}


@pytest.mark.parametrize(('fields', 'words'), [
    (statics_of(('p9', 50)), ('predict.statics', "no id in 'patient' occurs in the data")),
    (statics_of(('1', 50)), ('predict.columns.outcome_patient', '1 patients have two ids')),
    (statics_of(('001', 50), columns={'age': 'age_yrs'}), ('predict.statics', "no column 'age_yrs'", "'age'")),
    (statics_of(('001', 130)), ('predict.statics', "1 entries of 'age' are not years from 0 to 120")),
    (statics_of(('001', 50), ('', 60)), ('predict.statics', "a row has no 'patient'")),
    (stranger, ('predict.path', 'none of the 1 names')),
    (other_unit, ('predict.path', 'lactate', 'accepted_units')),
    (no_column, ("no column 'patient'",)),
    (ages_in_words, ('predict.statics', "1 entries of 'age'")),
    (lambda folder: {'path': str(folder / 'none.csv')}, ('predict.path',)),
    (lambda folder: {'path': str(folder), 'policy': 'rll'}, ('predict.policy', 'sft')),
    (lambda folder: {'path': str(folder), 'source': 'synthetic'}, ('predict.source',)),
    (lambda folder: {'path': str(folder), 'name': '../up'}, ('predict.name',)),
])
def test_what_cannot_work_is_refused(run, tmp_path, fields, words):
  with pytest.raises(EagrlError) as e:
    predict.run(config(**fields(tmp_path)), run)
  assert all(word in str(e.value) for word in words) and 'config.data' not in str(e.value)


def test_a_folder_that_is_no_finished_run_is_refused(run, long, tmp_path):
  with pytest.raises(EagrlError, match='holds no run'):
    predict.run(config(path=long), tmp_path)
  copy = tmp_path / 'w'
  shutil.copytree(run, copy)
  saved = (copy / 'config.json').read_text()
  changed = json.loads(saved)
  changed['prompt']['max_values'] += 1
  (copy / 'config.json').write_text(json.dumps(changed))
  with pytest.raises(EagrlError, match='config.json is not the config that base'):
    predict.run(config(path=long), copy)
  (copy / 'config.json').write_text(saved)
  done = json.loads((copy / 'sft/done.json').read_text())
  (copy / 'sft/done.json').write_text(json.dumps(done | {'hash': '0' * 16}))
  with pytest.raises(EagrlError, match='made from other stages'):
    predict.run(config(path=long), copy)
  for damage in (b'\xff', b'[]', b'{"hash": "0"}', b'{"hash": "0", "inputs": 1}'):
    (copy / 'rl/done.json').write_bytes(damage)
    with pytest.raises(EagrlError, match='rl is not finished'):
      predict.run(config(path=long), copy)
  (copy / 'rl/done.json').unlink()
  with pytest.raises(EagrlError, match='rl is not finished'):
    predict.run(config(path=long), copy)


RUN = FeatureTable((FeatureSpec('lactate', 'mmol/L', accepted_units=(('mg/dL', 0.111, 0.0),), hard_high=30),
                    FeatureSpec('temperature', 'degC', aliases=('temp',)), FeatureSpec('coma', kind='ordinal'),
                    FeatureSpec('weight', 'kg')))
OTHER = FeatureTable((
    FeatureSpec('Temp', 'degF', accepted_units=(('degC', 1.8, 32.0),)), FeatureSpec('LACTATE', 'mg/dL'),
    FeatureSpec('coma'), FeatureSpec('moon', aliases=('phase',)), FeatureSpec('body temperature', 'degC',
                                                                              aliases=('temperature core', 'temp b'))))


def test_a_cohort_is_mapped_by_name_and_unit(cohort):
  one = dataclasses.replace(
      cohort.take(np.array([0])), features=OTHER, patient=np.zeros(5, np.int32), hour=np.arange(5, dtype=np.float32),
      feature=np.array([0, 1, 1, 2, 3], np.int16), value=np.array([98.6, 20, 5000, 15, 1], np.float32))
  mapped, match = foreign.remap(one, RUN)
  assert match.mapped == ('lactate', 'temperature') and match.lacking == ('coma', 'weight')
  assert match.units == ('coma',) and match.unknown == 2
  assert mapped.features is RUN and mapped.truth is None
  np.testing.assert_allclose(mapped.value, [37.0, 2.22], rtol=1e-5)  # 5000 mg/dL lies outside the run's hard range
  assert mapped.feature.tolist() == [1, 0]
  with pytest.raises(EagrlError, match='none of its'):
    foreign.remap(one, RUN.subset([3]))
  assert not foreign.blinded(dataclasses.replace(one, label=np.ones(1, np.int8))).label.any()


def test_a_feature_of_the_same_name_goes_before_an_alias(cohort):
  run = FeatureTable((FeatureSpec('temperature', aliases=('temp',)), FeatureSpec('moon')))
  two = dataclasses.replace(
      cohort.take(np.array([0])), features=FeatureTable((FeatureSpec('temp'), FeatureSpec('Temperature'))),
      patient=np.zeros(2, np.int32), hour=np.zeros(2, np.float32), feature=np.array([0, 1], np.int16),
      value=np.array([36, 38], np.float32))
  mapped, match = foreign.remap(two, run)
  assert mapped.value.tolist() == [38] and (match.mapped, match.unknown) == (('temperature',), 1)


def test_levels_of_other_numbers_go_by_their_words(cohort):
  """Pain 1 to 3 of one hospital is 0 to 2 of the run; other words are no answer to what its numbers mean."""
  feature = lambda name, *words, start=0: FeatureSpec(
      name, kind='ordinal', levels=tuple((float(start + i), word) for i, word in enumerate(words)))
  run = FeatureTable((feature('pain', 'none', 'mild', 'severe'), feature('eyes', 'none', 'to pain', 'open'),
                      feature('motor', 'none', 'weak'), FeatureSpec('score', kind='ordinal'),
                      feature('voice', 'none', 'sounds', 'words')))
  other = FeatureTable((feature('pain', 'None', 'mild', 'severe', 'not asked', start=1),
                        feature('eyes', 'open', 'closed'), feature('motor', 'none', 'weak', 'obeys'),
                        feature('score', 'low', 'high', start=5), feature('voice', 'none', 'a sound', 'words')))
  rows = [(0, 1), (0, 3), (0, 2.5), (0, 4), (1, 0), (2, 1), (2, 2), (3, 6), (4, 1)]
  made = dataclasses.replace(
      cohort.take(np.array([0])), features=other, patient=np.zeros(9, np.int32), hour=np.arange(9, dtype=np.float32),
      feature=np.array([f for f, _ in rows], np.int16), value=np.array([v for _, v in rows], np.float32))
  mapped, match = foreign.remap(made, run)
  assert list(zip(mapped.feature, mapped.value)) == [(0, 0), (0, 2), (2, 1), (2, 2), (3, 6), (4, 1)]
  assert match.units == ('eyes',) and '1 are missing (1 for their units or levels)' in match.line()
  assert (foreign.NO_LEVEL, 2, 'values') in mapped.attrition


def test_fields_are_named_as_the_user_knows_them():
  with pytest.raises(EagrlError) as e, foreign.speaking_of('predict'):
    raise EagrlError("data.path: data.csv has no column 'x'; set --config.data.columns.patient, see my-data.gz")
  assert str(e.value) == (
      "predict.path: data.csv has no column 'x'; set --config.predict.columns.patient, see my-data.gz")


def test_a_fingerprint_sees_content_and_places(tmp_path):
  (tmp_path / 'a').write_text('1')
  one = finished.fingerprint(tmp_path)
  (tmp_path / 'a').rename(tmp_path / 'b')
  two = finished.fingerprint(tmp_path)
  (tmp_path / 'b').write_text('2')
  assert len({one, two, finished.fingerprint(tmp_path)}) == 3


@pytest.mark.parametrize('before', [False, True])
def test_the_files_that_a_run_was_made_from_are_not_needed(before, run, micro_config, tmp_path):
  """A run of files that have moved is used as it stands; one whose config was changed is not."""
  copy = tmp_path / 'w'
  shutil.copytree(run, copy)
  c = micro_config()
  c.rl.checkpoint_every = 7  # counted once
  c.data.update(source='csv', path=str(tmp_path / 'gone.csv'))
  inputs = {}
  for stage in graph.STAGES[:6]:  # as if they had been made from that file
    done = {'hash': graph.stage_hash(stage, c, {n: inputs[n] for n in stage.needs}, before),
            'inputs': {n: inputs[n] for n in stage.needs}}
    if stage.name == 'prepare':
      done['hash'] = '0' * 16
    inputs[stage.name] = done['hash']
    (copy / stage.name / 'done.json').write_text(json.dumps(done))
  finished.check_run(copy, c, ('rl', 'expert'))
  c.seed += 1
  with pytest.raises(EagrlError, match='config.json'):
    finished.check_run(copy, c, ('rl', 'expert'))
