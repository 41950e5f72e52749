"""A small workbook with the traps of the published one, and the published one where it is present."""

from __future__ import annotations

import datetime
import pathlib

import numpy as np
import openpyxl
import pytest

from eagrl_jax.ehr.records import to_visits
from eagrl_jax.ehr.sources import tjh
from eagrl_jax.ehr.sources.tjh_features import FEATURES
from eagrl_jax.types import EagrlError

REAL = pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'tjh' / 'time_series_375_prerpocess_en.xlsx'
real = pytest.mark.skipif(not REAL.is_file(), reason='../shared/data/tjh is absent')

BASE = ['PATIENT_ID', 'RE_DATE', 'age', 'gender', 'Admission time', 'Discharge time', 'outcome']
LABS = ['Platelet count', 'hemoglobin', 'hematocrit', 'White blood cell count', 'Red blood cell count', 'PH value',
        'mean corpuscular hemoglobin ', 'Hypersensitive c-reactive protein', '2019-nCoV nucleic acid detection', 'ESR']
CHINESE = {'age': '年龄', 'gender': '性别', 'Admission time': '入院时间', 'Discharge time': '出院时间',
           'outcome': '出院方式', 'Platelet count': '血小板计数', 'hemoglobin': '血红蛋白',
           'Hypersensitive c-reactive protein': '超敏C反应蛋白',
           'White blood cell count': '白细胞计数', 'Red blood cell count': '红细胞计数', 'hematocrit': '红细胞压积'}
IN, OUT = datetime.datetime(2020, 2, 1), datetime.datetime(2020, 2, 9)


def day(d: float) -> datetime.datetime:
  return datetime.datetime(2020, 2, 1) + datetime.timedelta(days=d)


def row(patient, when, age=60, sex=1, outcome=0, **labs):
  cells = {name.strip(): None for name in LABS} | {'2019-nCoV nucleic acid detection': -1} | labs
  return [patient, when, age, sex, IN, OUT, outcome, *(cells[name.strip()] for name in LABS)]


ROWS = [
    row(7, day(1.5), **{'Platelet count': 200, 'Hypersensitive c-reactive protein': '<0.5', 'ESR': 'haemolysed'}),
    row(None, day(1), **{'Platelet count': -1, 'hemoglobin': 130, 'mean corpuscular hemoglobin': 30.5}),
    row(None, day(8.5), **{'Platelet count': 90}),  # after discharge
    row(8, None, age=50),  # the one empty row of an undated patient
    row(202, day(2), age=70, sex=2, outcome=1,
        **{'White blood cell count': 1726.6, 'Red blood cell count': 4.4, 'PH value': 6.5}),  # urinalysis
    row(None, day(2.25), age=70, sex=2, outcome=1,
        **{'hematocrit': 40, 'White blood cell count': 8.1, 'PH value': 7.41}),
    row(None, day(2.5), age=70, sex=2, outcome=1, **{'hemoglobin': 12.9, 'PH value': 7.0}),  # g/dL; dipstick
    row(None, day(2.5), age=70, sex=2, outcome=1, **{'PH value': 6.72, 'hematocrit': 40, 'Red blood cell count': 96}),
    row(203, day(10), outcome=1, **{'Platelet count': 100}),  # nothing before discharge
]


def write(path, rows=ROWS, header=(*BASE, *LABS)):
  book = openpyxl.Workbook()
  book.active.append(list(header))
  for r in rows:
    book.active.append(r)
  book.save(path)
  return path


def events_of(cohort, subject):
  i = cohort.subject_id.tolist().index(subject)
  mine = cohort.patient == i
  return {(float(h), cohort.features[int(f)].name): round(float(v), 3)
          for h, f, v in zip(cohort.hour[mine], cohort.feature[mine], cohort.value[mine])}


def test_every_trap_is_handled_and_counted(tmp_path):
  cohort = tjh.load(write(tmp_path / 'tjh.xlsx'))
  assert set(cohort.subject_id) == {'7', '202'}
  assert events_of(cohort, '7') == {
      (12.0, 'platelet count'): 200, (12.0, 'hs-CRP'): 0.5, (0.0, 'hemoglobin'): 130,
      (0.0, 'mean corpuscular hemoglobin'): 30.5}
  limits = np.flatnonzero(cohort.censor)
  assert [(cohort.features[cohort.feature[i]].name, cohort.censor[i]) for i in limits] == [('hs-CRP', -1)]
  assert events_of(cohort, '202') == {
      (6.0, 'hematocrit'): 40, (6.0, 'white blood cell count'): 8.1, (6.0, 'blood pH'): 7.41, (12.0, 'hematocrit'): 40}
  dead = cohort.subject_id.tolist().index('202')
  assert (cohort.age[dead], cohort.sex[dead], cohort.label[dead]) == (70, 0, 1)
  assert (cohort.sex[1 - dead], cohort.label[1 - dead]) == (1, 0)
  assert set(cohort.attrition) == {
      ('read', 4, 'patients'), ('read', 9, 'rows'), ('without date', 1, 'rows'),
      ('without any dated row', 1, 'patients'), ('without outcome', 0, 'patients'), ('after discharge', 2, 'rows'),
      ('assay limit written as < or >', 1, 'values'),
      ('constant column, 2019-nCoV nucleic acid detection', 9, 'values'),
      ('text', 1, 'values'), ('of a urinalysis row: pH and cells', 3, 'values'),
      ('pH in steps of 0.5, a dipstick', 1, 'values'), ('outside hard range: platelet count', 1, 'values'),
      ('outside hard range: hemoglobin', 1, 'values'), ('outside hard range: blood pH', 1, 'values'),
      ('outside hard range: red blood cell count', 1, 'values'), ('without any observation', 1, 'patients'),
      ('kept', 2, 'patients'), ('kept', 8, 'values')}


def test_rows_after_discharge_on_request(tmp_path):
  cohort = tjh.load(write(tmp_path / 'tjh.xlsx'), keep_after_discharge=True)
  assert set(cohort.subject_id) == {'7', '202', '203'}
  assert events_of(cohort, '7')[(180.0, 'platelet count')] == 90
  assert ('after discharge, kept', 2, 'rows') in cohort.attrition


def test_who_has_left_before_the_prediction_is_not_predicted(tmp_path):
  late = row(204, day(7.5), outcome=1, **{'Platelet count': 60})  # 12 hours before the end of the stay
  path = write(tmp_path / 'tjh.xlsx', [*ROWS, late])
  assert '204' in tjh.load(path).subject_id and '204' in tjh.load(path, window_hours=12).subject_id
  cohort = tjh.load(path, window_hours=13)
  assert set(cohort.subject_id) == {'7', '202'} and cohort.name == 'tjh_13h'
  assert ('stay ended within the window', 2, 'patients') in cohort.attrition  # 203 had ended before its first row
  assert '204' in tjh.load(path, window_hours=13, labelled=False).subject_id
  with pytest.raises(EagrlError, match='a stay of 999 hours; set data.window_hours lower'):
    tjh.load(path, window_hours=999)


def test_chinese_headers_and_text_dates_read_the_same(tmp_path):
  english = tjh.load(write(tmp_path / 'en.xlsx'))
  rows = [[r[0], r[1] and r[1].isoformat(sep=' '), *r[2:]] for r in ROWS]
  other = tjh.load(write(tmp_path / 'cn.xlsx', rows, [CHINESE.get(name, name) for name in (*BASE, *LABS)]))
  for field in ('subject_id', 'age', 'sex', 'label', 'patient', 'hour', 'feature', 'value'):
    np.testing.assert_array_equal(getattr(english, field), getattr(other, field))


def test_order_of_patients_is_not_the_order_of_the_file(tmp_path):
  rows = [row(i, day(1), outcome=int(i > 20), **{'Platelet count': 200}) for i in range(1, 41)]
  cohort = tjh.load(write(tmp_path / 'a.xlsx', rows))
  back = tjh.load(write(tmp_path / 'b.xlsx', rows[::-1]))
  np.testing.assert_array_equal(cohort.subject_id, back.subject_id)
  assert abs(cohort.label[:20].mean() - 0.5) < 0.3


@pytest.mark.parametrize(('header', 'rows', 'message'), [
    ([*BASE[:-1], 'outcom', *LABS], ROWS, "'outcom' is not a TJH column"),
    ([n for n in (*BASE, *LABS) if n != 'RE_DATE'], [r[:1] + r[2:] for r in ROWS], "no column 'RE_DATE'; the nearest"),
    ([*BASE, *LABS[:-1], 'Eosinophil countt'], ROWS, "'Eosinophil countt' is not a TJH column.*eosinophil count"),
    ([*BASE, *LABS[:-1], 'platelet count '], ROWS, 'two columns mean'),
    ([*BASE, *LABS], [row(1, day(1)), row(None, day(2), outcome=1)], 'two different ages, sexes, outcomes'),
    ([*BASE, *LABS], [row(None, day(1))], 'first row has no PATIENT_ID'),
    ([*BASE, *LABS], [row(1, 'soon')], "'RE_DATE' holds something that is not a date"),
    ([*BASE, *LABS], [], 'holds no rows'),
    ([*BASE, *LABS], [row(1, None)], 'no patient has a dated row'),
    ([*BASE, *LABS], [row(1, day(1), **{'ESR': 3})], 'all 1 patients are negative'),
    (BASE, [r[:7] for r in ROWS], 'no laboratory column')])
def test_bad_workbooks_are_one_line(tmp_path, header, rows, message):
  with pytest.raises(EagrlError, match=message) as caught:
    tjh.load(write(tmp_path / 'bad.xlsx', rows, header))
  assert '\n' not in str(caught.value)


def test_not_a_workbook(tmp_path):
  (tmp_path / 'a.xlsx').write_text('PATIENT_ID,RE_DATE')
  (tmp_path / 'b.csv').write_text('PATIENT_ID,RE_DATE')
  good = write(tmp_path / 'c.xlsx').read_bytes()
  (tmp_path / 'cut.xlsx').write_bytes(good[:len(good) // 2])
  for name in ('a.xlsx', 'b.csv', 'cut.xlsx'):
    with pytest.raises(EagrlError, match='not a readable xlsx workbook'):
      tjh.load(tmp_path / name)
  with pytest.raises(EagrlError, match='there is no file'):
    tjh.load(tmp_path / 'absent.xlsx')


def test_feature_table_is_complete_and_ordered():
  assert len(FEATURES) == 73
  for spec in FEATURES:
    assert spec.ref_low < spec.ref_high and spec.hard_low <= spec.ref_low and spec.ref_high <= spec.hard_high
    assert spec.group and not set(spec.name) & set(',;<>\n')
  groups = [s.group for s in FEATURES]
  assert [g for g, before in zip(groups, [None, *groups]) if g != before] == list(dict.fromkeys(groups))


@real
def test_published_workbook():
  published = tjh.load(REAL, keep_after_discharge=True)
  assert (len(published), int(published.label.sum())) == (361, 166)
  cohort = tjh.load(REAL)
  assert (len(cohort), int(cohort.label.sum())) == (359, 164)
  found = {step: count for step, count, _ in cohort.attrition}
  assert found['without any dated row'] == 14 and found['after discharge'] == 71
  assert found['outside hard range: platelet count'] == 4 and found['without any observation'] == 2
  assert len(np.unique(cohort.feature)) == 73
  first_day = to_visits(cohort, 24, 8, window_hours=24)
  assert first_day.valid.sum(1).tolist() == [1] * 359
  for f, spec in enumerate(FEATURES):  # units: the survivors' last value is typically in or near the reference range
    mine = np.flatnonzero((cohort.feature == f) & (cohort.label[cohort.patient] == 0))
    last = mine[np.append(np.diff(cohort.patient[mine]) > 0, True)]
    middle = np.median(cohort.value[last])
    width = spec.ref_high - spec.ref_low
    assert spec.ref_low - 0.5 * width <= middle <= spec.ref_high + 0.5 * width, spec.name
