"""New patients of every source: no outcome is needed, and where one stands in the files it changes nothing."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io

import mimic4_fixture
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import test_meds
import test_physionet2012
import test_tjh
import test_yaib

from configs import defaults
from eagrl_jax.ehr import store
from eagrl_jax.ehr.features import FeatureTable
from eagrl_jax.stages import prepare
from eagrl_jax.types import EagrlError


def tjh(folder, data):
  data.path = str(test_tjh.write(folder / 'tjh.xlsx'))


def workbook(change, header=(*test_tjh.BASE, *test_tjh.LABS)):
  """Writes the workbook again, each row after `change`."""
  return lambda folder, data: test_tjh.write(folder / 'tjh.xlsx', [change(list(r)) for r in test_tjh.ROWS], header)


def without(row, *columns):
  return [cell for i, cell in enumerate(row) if i not in columns]


TJH = {
    'columns': workbook(lambda r: without(r, 5, 6), without((*test_tjh.BASE, *test_tjh.LABS), 5, 6)),
    'cells': workbook(lambda r: [*r[:5], None, None, *r[7:]]),
    'outcome alone': workbook(lambda r: without(r, 6), without((*test_tjh.BASE, *test_tjh.LABS), 6)),
    'other outcomes': workbook(lambda r: [*r[:5], test_tjh.day(2), 'unknown', *r[7:]])}


def physionet2012(folder, data):
  data.update(path=str(test_physionet2012.make(folder)), outcomes='')


PHYSIONET = {
    'no file': lambda folder, data: (folder / 'Outcomes-a.txt').unlink(),
    'other outcomes': lambda folder, data: (folder / 'Outcomes-a.txt').write_text('RecordID,In-hospital_death\n15,1\n')}


def yaib(folder, data):
  data.path = str(test_yaib.make(folder, sta={'stay_id': [8, 7, 10], 'height': [170.0, test_yaib.NAN, 160]}))


def outc(**columns):
  return lambda folder, data: pq.write_table(pa.table(columns), folder / 'outc.parquet')


YAIB = {'no file': lambda folder, data: (folder / 'outc.parquet').unlink(),
        'other outcomes': outc(stay_id=[8, 8], time=[1, 2], label=[3, 0])}


def meds_set(folder, data):
  test_meds.make(folder)
  data.update(path=str(folder / 'set'), outcomes=str(folder / 'labels'), features=str(folder / 'features.yaml'))


def labels(change):
  def rewrite(folder, data):
    path = folder / 'labels' / '0.parquet'
    pq.write_table(change(pq.read_table(path)), path)
  return rewrite


MEDS = {'column': labels(lambda t: t.drop_columns('boolean_value')),
        'cells': labels(lambda t: t.set_column(2, 'boolean_value', pa.nulls(len(t), pa.bool_()))),
        'other outcomes': labels(lambda t: t.set_column(2, 'boolean_value', pc.invert(t['boolean_value'])))}


def mimic4(folder, data):
  # Patient 3 leaves intensive care after 30 hours and is still measured, patient 1 after death by a slip of the clock.
  chart = [(3, 40, 220045, '81', '81', 'bpm'), (3, 48, 220045, '82', '82', 'bpm'), (1, 58.4, 220045, '13', '13', 'bpm')]
  data.path = str(mimic4_fixture.write(folder, chart=chart))


COLUMNS = {'hosp/admissions': ('dischtime', 'deathtime', 'hospital_expire_flag'), 'hosp/patients': ('dod',),
           'icu/icustays': ('outtime', 'los')}


def table(folder, name, change):
  path = folder / f'{name}.csv.gz'
  rows = list(csv.DictReader(io.StringIO(gzip.decompress(path.read_bytes()).decode())))
  rows = [change(row) for row in rows]
  text = io.StringIO()
  writer = csv.DictWriter(text, list(rows[0]))
  writer.writeheader()
  writer.writerows(rows)
  path.write_bytes(gzip.compress(text.getvalue().encode()))


def emptied(*keep):
  """Nobody has died or left, as if all were still in hospital."""
  def rewrite(folder, data):
    for name, columns in COLUMNS.items():
      table(folder, name, lambda row: row | {c: '' for c in columns if c not in keep})
  return rewrite


def dropped(folder, data):
  for name, columns in COLUMNS.items():
    table(folder, name, lambda row: {k: v for k, v in row.items() if k not in columns})


def everybody_died(folder, data):
  table(folder, 'hosp/admissions', lambda row: row | {'hospital_expire_flag': '1', 'deathtime': mimic4_fixture.at(9),
                                                      'dischtime': mimic4_fixture.at(9)})
  table(folder, 'icu/icustays', lambda row: row | {'outtime': row['intime']})


MIMIC = {'cells': emptied(), 'columns': dropped, 'other outcomes': everybody_died}
EVERYBODY = {'1', '2', '3', '4', '5', '6'}
# variant, how it is written, fields of data, changes to what is written, who is predicted
SOURCES = {
    'tjh': ('tjh', tjh, {'protocol': 'tjh_140_21_200'}, TJH, {'7', '202', '203'}),
    'physionet2012': ('physionet2012', physionet2012, {}, PHYSIONET, {'11', '12', '14', '15'}),
    'yaib': ('yaib', yaib, {}, YAIB, {'7', '8', '9', '10'}),
    'meds': ('meds', meds_set, {'window_hours': 0.0}, MEDS, {'1', '2', '3'}),
    'mimic4': ('mimic4', mimic4, {}, MIMIC, EVERYBODY),
    'mimic4 hospital': ('mimic4', mimic4, {'index': 'hospital'}, MIMIC, EVERYBODY),
    'mimic4 readmission': ('mimic4_readmission', mimic4, {'window_hours': 24.0}, MIMIC, EVERYBODY),
    # What is known on leaving needs the time of leaving, and no outcome is that.
    'mimic4 leaving': ('mimic4_readmission', mimic4, {}, {'cells': emptied('outtime')}, EVERYBODY),
    'mimic4 leaving hospital': ('mimic4_readmission', mimic4, {'index': 'hospital'}, {'cells': emptied('dischtime')},
                                EVERYBODY)}


def written(name, folder, change=None):
  """The config of a source that is written into a new folder."""
  variant, write, fields, changes, _ = SOURCES[name]
  data = defaults.get_config(variant).data
  data.update(fields)
  folder.mkdir()
  write(folder, data)
  if change:
    changes[change](folder, data)
  return data


def records(cohort):
  """All that is seen of every patient."""
  censor = np.zeros(len(cohort.value), np.int8) if cohort.censor is None else cohort.censor
  found = {s: [(float(a), int(x))] for s, a, x in zip(cohort.subject_id.tolist(), cohort.age, cohort.sex)}
  for p, *event in zip(cohort.patient, cohort.hour.tolist(), cohort.feature.tolist(), cohort.value.tolist(),
                       censor.tolist()):
    found[cohort.subject_id[p]].append(tuple(event))
  return {s: sorted(map(str, rows)) for s, rows in found.items()}


@pytest.mark.parametrize('name', SOURCES)
def test_new_patients_have_the_records_of_training_and_no_outcome(name, tmp_path):
  data = written(name, tmp_path / 'a')
  known, new = prepare.read_source(data, 0), prepare.read_source(data, 0, labelled=False)
  assert set(new.subject_id.tolist()) == SOURCES[name][-1]
  assert new.label.dtype == np.int8 and not new.label.any() and known.label.any() and new.stay_end is None
  assert not [step for step, *_ in new.attrition if any(word in step for word in (
      'outcome', 'label', 'positive', 'died', 'discharge', 'shorter'))]
  mine, theirs = records(new), records(known)
  assert len(theirs) > 1 and {s: mine[s] for s in theirs} == theirs


@pytest.mark.parametrize('name', ['meds', 'mimic4', 'yaib'])
def test_codes_for_missing_of_a_run_are_those_of_its_new_patients(name, tmp_path):
  data = written(name, tmp_path / 'a')
  plain = prepare.read_source(data, 0, labelled=False)
  f, code = int(plain.feature[0]), float(plain.value[0])
  specs = [dataclasses.replace(spec, sentinels=(code,) if i == f else ()) for i, spec in enumerate(plain.features)]
  new = prepare.read_source(data, 0, labelled=False, known=FeatureTable(tuple(specs)))
  assert code in plain.value[plain.feature == f] and code not in new.value[new.feature == f]
  assert f'code for missing: {plain.features[f].name}' in dict((step, n) for step, n, _ in new.attrition)
  specs[f] = dataclasses.replace(specs[f], unit='another')
  same = prepare.read_source(data, 0, labelled=False, known=FeatureTable(tuple(specs)))
  assert store.fingerprint(same) == store.fingerprint(plain)


@pytest.mark.parametrize(('name', 'change'), [(name, change) for name in SOURCES for change in SOURCES[name][3]])
def test_absent_empty_or_other_outcomes_change_nothing(name, change, tmp_path):
  full = prepare.read_source(written(name, tmp_path / 'a'), 0, labelled=False)
  bare = prepare.read_source(written(name, tmp_path / 'b', change), 0, labelled=False)
  assert store.fingerprint(bare) == store.fingerprint(full) and bare.attrition == full.attrition


@pytest.mark.parametrize(('name', 'change', 'message'), [
    ('tjh', 'columns', "data.path: the workbook has no column 'Discharge time'"),
    ('tjh', 'outcome alone', "data.path: the workbook has no column 'outcome'"),
    ('tjh', 'cells', 'data.path: no patient has a dated row and an outcome of 0 or 1; check those columns'),
    ('physionet2012', 'no file',
     'data.outcomes: there is no file .*Outcomes-a.txt; with --config.data.outcomes= .empty. it is looked for beside'),
    ('yaib', 'no file', 'data.path: b holds no outc.parquet; give the folder that does'),
    ('meds', 'column', "data.outcomes: labels has no column 'boolean_value'; convert it to MEDS 0.3 or later"),
    ('meds', 'cells', "data.outcomes: 'boolean_value' is empty in all 6 labels; give a yes-or-no task"),
    ('mimic4', 'columns', "data.path: admissions.csv.gz has no column 'dischtime'; get MIMIC-IV 2.0 or later"),
    ('mimic4', 'cells', 'data.path: no stay is left; the attrition would be')])
def test_training_needs_outcomes(name, change, message, tmp_path):
  with pytest.raises(EagrlError, match=f'^{message}'):
    prepare.read_source(written(name, tmp_path / 'b', change), 0)


def test_nothing_is_seen_from_the_prediction_on(tmp_path):
  """Of a stay that ended before, all that was measured until then; whoever has died."""
  new = prepare.read_source(written('mimic4', tmp_path / 'a'), 0, labelled=False)
  hours = {s: new.hour[new.patient == i].tolist() for i, s in enumerate(new.subject_id.tolist())}
  assert hours['3'] == [1, 40] and new.hour.max() < 48
  asked = prepare.read_source(written('meds', tmp_path / 'b', 'cells'), 0, labelled=False)
  assert asked.hour[asked.patient == asked.subject_id.tolist().index('1')].max() == 24  # of a later time 100 as well


def test_a_meds_label_set_still_says_when(tmp_path):
  data = written('meds', tmp_path / 'a')
  for change, message in (
      (lambda t: t.drop_columns(['prediction_time', 'boolean_value']),
       "no column 'prediction_time'; subject_id and prediction_time say whom to predict and when"),
      (lambda t: t.drop_columns('subject_id'), "no column 'subject_id'; subject_id and prediction_time say whom")):
    path = tmp_path / 'a' / 'labels' / '0.parquet'
    whole = pq.read_table(path)
    pq.write_table(change(whole), path)
    with pytest.raises(EagrlError, match=f'^data.outcomes: labels has {message}'):
      prepare.read_source(data, 0, labelled=False)
    pq.write_table(whole, path)
  data.outcomes = ''
  with pytest.raises(EagrlError, match='^data.outcomes: a MEDS data set comes with a label set, whose subject_id and'):
    prepare.read_source(data, 0, labelled=False)


def test_what_ends_with_the_outcome_is_refused(tmp_path):
  data = written('mimic4', tmp_path / 'a')
  data.window_hours = 0.0
  for index in ('icu', 'hospital'):
    data.index = index
    with pytest.raises(EagrlError, match=r'^data.window_hours=0: .* discharge or death, .* trained with --config.*48$'):
      prepare.read_source(data, 0, labelled=False)
  for name, column in (('mimic4 leaving', 'outtime'), ('mimic4 leaving hospital', 'dischtime')):
    data = written(name, tmp_path / column)
    emptied()(tmp_path / column, data)
    with pytest.raises(EagrlError, match=f'^data.path: {column} is empty in all stays; .* fill it in$'):
      prepare.read_source(data, 0, labelled=False)


def test_other_sources_are_not_read_so():
  data = defaults.get_config('csv').data
  with pytest.raises(ValueError, match='without outcomes'):
    prepare.read_source(data, 0, labelled=False)
