"""A written hospital with MIMIC-IV's traps, and the demo where it is present: counts only, no patient's values."""

from __future__ import annotations

import gzip
import pathlib
import tracemalloc

import mimic4_fixture
import numpy as np
import pytest

from eagrl_jax.ehr import crossfield, validation
from eagrl_jax.ehr.sources import mimic4, mimic4_features
from eagrl_jax.ehr.sources.bounded import Grid
from eagrl_jax.types import EagrlError

DEMO = pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'mimic_iv_demo'
demo = pytest.mark.skipif(not DEMO.is_dir(), reason='../shared/data/mimic_iv_demo is absent')
HOURLY = Grid(1.0, 'mean', 48.0)


def load(folder, task='mortality', index='icu', grid=HOURLY):
  return mimic4.load(folder, task=task, index=index, grid=grid)


def labels(cohort):
  return dict(sorted(zip((int(s) for s in cohort.subject_id), cohort.label.tolist())))


def values(cohort, subject):
  mine = cohort.patient == cohort.subject_id.tolist().index(str(subject))
  return {(cohort.features[int(f)].name, round(float(h), 2)): round(float(v), 2)
          for f, h, v in zip(cohort.feature[mine], cohort.hour[mine], cohort.value[mine])}


def counted(cohort):
  return {(step, unit): count for step, count, unit in cohort.attrition}


@pytest.fixture(scope='module')
def hospital(tmp_path_factory):
  return mimic4_fixture.write(tmp_path_factory.mktemp('mimic'))


def test_seventeen_variables_are_forty_two_channels():
  features = mimic4_features.FEATURES
  assert len(features) == 17 and sum(len(s.levels) or 1 for s in features) == 42
  assert {i.feature for i in (*mimic4_features.CHART, *mimic4_features.LAB)} == set(features.names) - {'GCS total'}


def test_units_words_and_specimens(hospital):
  cohort = load(hospital)
  # Not there: an impossible heart rate, a verbal response behind a tube and its total, a lab stored after the window.
  assert values(cohort, 1) == {
      ('heart rate', 1): 80, ('temperature', 3): 37, ('temperature', 4): 38, ('height', 4.5): 177.8,
      ('weight', 5): 90.72, ('FiO2', 6): 50, ('FiO2', 30): 60, ('capillary refill', 7): 1, ('GCS eye opening', 8): 2,
      ('GCS motor response', 8): 5, ('glucose', 10): 180}
  assert values(cohort, 2) == {('heart rate', 1): 80, ('blood pH', 10): 7.31}  # not the urine's
  # The total needs all three parts at one time; nothing before the stay, from its 48th hour on, or of the next stay.
  assert values(cohort, 6) == {
      ('heart rate', 1): 80, ('GCS eye opening', 8): 4, ('GCS motor response', 8): 6, ('GCS verbal response', 8): 4,
      ('GCS total', 8): 14, ('GCS eye opening', 9): 3}


def test_prospective_mortality_is_counted_step_by_step(hospital):
  cohort = load(hospital)
  assert labels(cohort) == {1: 1, 2: 0, 4: 0, 5: 1, 6: 0}
  assert cohort.age[cohort.subject_id == '4'] == 56 and cohort.sex[cohort.subject_id == '4'] == 1
  assert cohort.hour.max() < 48 and '48 hours' in cohort.setting and cohort.name == 'mimic4_icu_first'
  found = counted(cohort)
  assert found | {
      ('read', 'rows'): 9, ('not the first icu stay of a patient', 'rows'): 2, ('read', 'patients'): 7,
      ('stay shorter than 48 h', 'patients'): 1, ('chartevents: before the stay', 'rows'): 1,
      ('chartevents: after the window', 'rows'): 3, ('chartevents: without a number', 'rows'): 1,
      ('chartevents: not assessed: no verbal response behind a tube', 'rows'): 1,
      ('chartevents: FiO2 written as a fraction, made a percentage', 'rows'): 1,
      ('labevents: charted in the window, stored after it', 'rows'): 1,
      ('outside hard range: heart rate', 'values'): 1, ('without any observation', 'patients'): 1,
      ('kept', 'patients'): 5} == found


def test_the_published_window_ends_with_the_stay(hospital):
  cohort = load(hospital, grid=Grid(24.0, 'last'))
  assert labels(cohort) == {1: 1, 2: 0, 3: 0, 4: 0, 5: 1, 6: 0}  # short stays too
  assert cohort.name == 'mimic4_icu_last_days' and 'last days' in cohort.setting
  # Calendar days: the stay began at 20:30; glucose of hour 47 was stored at hour 49, before the stay's end.
  found = values(cohort, 1)
  assert {h for name, h in found if name == 'heart rate'} == {21.5} and found[('heart rate', 21.5)] == 80
  assert found[('glucose', 67.5)] == 300 and found[('FiO2', 50.5)] == 60
  assert values(cohort, 6)[('GCS eye opening', 29.5)] == 3  # the day's last
  assert values(load(hospital, grid=Grid(24.0, 'mean', 48.0)), 6)[('GCS eye opening', 9)] == 3.5


def test_readmission_and_what_becomes_of_deaths(hospital):
  grid = Grid(24.0, 'last')
  icu, ward = load(hospital, 'readmission', 'icu', grid), load(hospital, 'readmission', 'hospital', grid)
  assert labels(icu) == {2: 1, 3: 1, 4: 1, 5: 1, 6: 0} | {3: 0}  # 3 is back in hospital, not in intensive care
  assert labels(ward) == {2: 0, 3: 1, 4: 1, 6: 0}
  found = counted(icu)
  assert found[('died before leaving intensive care', 'patients')] == 1
  assert found[('positive: readmitted within 30 days', 'patients')] == 1
  assert found[('positive: died within 30 days, not readmitted', 'patients')] == 2
  assert counted(ward)[('died before leaving the hospital', 'patients')] == 2


def test_compression_and_repetition_change_nothing(hospital, tmp_path):
  plain = load(mimic4_fixture.write(tmp_path, zipped=False))
  for other in (load(hospital), load(hospital)):
    for field in ('subject_id', 'label', 'patient', 'hour', 'feature', 'value'):
      np.testing.assert_array_equal(getattr(plain, field), getattr(other, field))


def test_rows_charted_twice_count_once_also_in_the_coma_score(tmp_path):
  heart = [(6, h, 220045, v, v, 'bpm') for h, v in ((20, '100'), (20, '100'), (21, '40'))]
  coma = [(6, 20, item, '', v, '') for item, v in (
      (220739, '2'), (220739, '2'), (220739, '4'), (223901, '6'), (223900, '5'))]
  cohort = load(mimic4_fixture.write(tmp_path, chart=[*heart, *coma]), grid=Grid(24.0, 'mean', 48.0))
  assert values(cohort, 6)[('heart rate', 21)] == 73.33  # 80 of the first hour, 100 and 40
  assert values(cohort, 6)[('GCS eye opening', 20)] == 3.33 and values(cohort, 6)[('GCS total', 20)] == 14
  found = counted(cohort)
  assert found[(validation.IDENTICAL, 'values')] == 2 and found[(validation.CONFLICT, 'values')] == 1
  assert (crossfield.GCS_REASON, 'values') not in found


def test_no_row_of_the_files_stays_in_memory(tmp_path):
  rows = 30_000
  chart = [(6, 1 + k / rows, 220045, str(60 + k % 40), str(60 + k % 40), 'bpm') for k in range(rows)]
  folder = mimic4_fixture.write(tmp_path, chart=chart)
  tracemalloc.start()
  try:
    cohort = load(folder)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert counted(cohort)['chartevents: of these items and patients', 'rows'] > rows
  assert peak < 8 * rows  # one number a row; what the database itself holds is limited


def test_release_without_chart_storetime(tmp_path):
  assert len(load(mimic4_fixture.write(tmp_path, drop='storetime'))) == 5


def truncated(folder):
  path = folder / 'icu' / 'chartevents.csv.gz'
  path.write_bytes(path.read_bytes()[:200])


def ragged(folder):
  path = folder / 'icu' / 'chartevents.csv.gz'
  path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b'secret,"7\n'))


def absent(folder):
  (folder / 'hosp' / 'labevents.csv.gz').unlink()


@pytest.mark.parametrize(('written', 'spoil', 'match'), [
    ({'chart': [(6, 5, 223761, '310', '310', 'kelvin')]}, None,
     "item 223761 of chartevents: 'temperature' occurs in 'kelvin', which .* add it to accepted_units"),
    ({'drop': 'itemid'}, None, "chartevents.csv.gz has no column 'itemid'"),
    ({}, truncated, 'chartevents.csv.gz is damaged'), ({}, ragged, 'chartevents.csv.gz is damaged'),
    ({}, absent, 'holds no hosp/labevents.csv.gz'),
    ({'chart': [(6, h / 9, 220045, '7', '7', 'bpm') for h in range(30)]}, None,
     "31 of 36 values of 'heart rate' lie outside its hard range"),
    ({'chart': [(6, h / 9, 223762, '98', '98', '°C') for h in range(30)]}, None,
     "30 of 32 values of 'temperature' are impossible in 'degC' but possible in 'degF'")])
def test_bad_files_are_one_line_without_content(tmp_path, written, spoil, match):
  folder = mimic4_fixture.write(tmp_path, **written)
  if spoil:
    spoil(folder)
  with pytest.raises(EagrlError, match=match) as caught:
    load(folder)
  assert '\n' not in str(caught.value) and 'secret' not in str(caught.value)


def test_an_unknown_index_names_the_choices(hospital):
  with pytest.raises(EagrlError, match=r"data\.index='ward' is unknown; choose one of mortality icu"):
    load(hospital, index='ward')


@demo
@pytest.mark.parametrize(('task', 'index', 'window', 'patients', 'positives'), [
    ('mortality', 'icu', 48.0, 53, 7), ('mortality', 'icu', 24.0, 85, 7), ('mortality', 'icu', 0.0, 100, 11),
    ('readmission', 'icu', 0.0, 93, 16), ('readmission', 'hospital', 0.0, 89, 19),
    ('readmission', 'icu', 48.0, 47, 10), ('readmission', 'hospital', 48.0, 87, 18)])
def test_demo(task, index, window, patients, positives):
  cohort = load(DEMO, task, index, Grid(24.0, 'last', window))
  assert (len(cohort), int(cohort.label.sum())) == (patients, positives)
  found = counted(cohort)
  assert found[('read', 'patients')] == 100
  seen = {cohort.features.names[f] for f in np.unique(cohort.feature)}
  assert seen == set(cohort.features.names)
  assert len(np.unique(cohort.patient[cohort.feature == cohort.features.find('height')])) > 0.3 * len(cohort)
  assert not window or cohort.hour.max() < window
  if cohort.stay_end is not None:  # neither discharge nor death, whichever comes first; rounded to a microsecond
    assert (cohort.hour <= cohort.stay_end[cohort.patient] + 1e-4).all()
  assert 18 <= cohort.age.min() and set(cohort.sex.tolist()) == {0, 1}
