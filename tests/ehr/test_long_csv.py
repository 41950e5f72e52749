from __future__ import annotations

import gzip

import numpy as np
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.sources import long_csv, wide_csv
from eagrl_jax.stages import foreign
from eagrl_jax.types import EagrlError

EVENTS = """patient,time,feature,value,unit
a,2.5,lactate,<0.5,mmol/L
a,1.5,lactate,2.0,mmol/L
a,1.5,temperature,98.6,degF
b,10,temperature,37.0,degC
b,,temperature,37.0,degC
b,12,lactate,clotted,mmol/L
b,12,sodium,140,
c,0,sodium,141,
d,0,sodium,150,
d,3,sodium,,
"""
OUTCOMES = 'patient,label,age,sex\nb,1,70,F\na,0,60.5,male\nc,,50,\nz,1,40,M\n'
SPEC = """
- {name: lactate, unit: mmol/L, ref_low: 0.5, ref_high: 2, hard_low: 0, hard_high: 50}
- {name: temperature, unit: degC, hard_low: 25, hard_high: 45,
   accepted_units: [[degF, 0.5555555555555556, -17.77777777777778]]}
- {name: serum sodium, unit: mmol/L, aliases: [sodium]}
"""


def make(tmp_path, events=EVENTS, outcomes=OUTCOMES, spec=SPEC):
  for name, text in (('e.csv', events), ('o.csv', outcomes), ('f.yaml', spec)):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
  return tmp_path / 'e.csv', tmp_path / 'o.csv'


def rows_of(cohort):
  return sorted((str(cohort.subject_id[p]), float(h), cohort.features[int(f)].name, round(float(v), 3))
                for p, h, f, v in zip(cohort.patient, cohort.hour, cohort.feature, cohort.value))


def refused(match, *args, **options):
  with pytest.raises(EagrlError, match=match) as caught:
    long_csv.load(*args, **options)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_events_outcomes_units_and_counts(tmp_path):
  cohort = long_csv.load(*make(tmp_path), features=tmp_path / 'f.yaml')
  assert rows_of(cohort) == [
      ('a', 0.0, 'lactate', 2.0), ('a', 0.0, 'temperature', 37.0), ('a', 1.0, 'lactate', 0.5),
      ('b', 0.0, 'temperature', 37.0), ('b', 2.0, 'serum sodium', 140.0)]
  i = cohort.subject_id.tolist().index('a')
  assert (cohort.age[i], cohort.sex[i], cohort.label[i]) == (60.5, 1, 0)
  assert (cohort.age[1 - i], cohort.sex[1 - i], cohort.label[1 - i]) == (70, 0, 1)
  assert cohort.attrition == (
      ('read', 4, 'patients'), ('read', 10, 'rows'), ('without patient, time or feature', 1, 'rows'),
      ('without value', 1, 'values'), ('text', 1, 'values'), ('assay limit written as < or >', 1, 'values'),
      ('without outcome', 2, 'patients'), ('outcome left empty', 1, 'patients'),
      ('outcome without a row', 1, 'patients'), ('kept', 2, 'patients'), ('kept', 5, 'values'))


def test_specs_derived_from_the_file(tmp_path):
  events = 'patient,time,feature,value,unit\na,0,Lactate,2.25,mmol/L\nb,0,lactate,3.25,mmol/L\na,0,"Na, serum",140,\n'
  cohort = long_csv.load(*make(tmp_path, events, 'patient,label\na,0\nb,1\n'))
  assert cohort.features.names == ('Lactate', 'Na serum')
  assert [(s.unit, s.decimals, s.ref_low, s.hard_high) for s in cohort.features] == [
      ('mmol/L', 2, None, None), ('', 0, None, None)]
  assert cohort.features.find('Na, serum') == 1
  assert np.isnan(cohort.age).all() and cohort.sex.tolist() == [-1, -1]


@pytest.mark.parametrize(('values', 'decimals'), [
    ((140, 3, 0), 0), ((0.5, 1.25, 3), 2), ((0.1234, 0.5678, 0.9), 3), ((0.00041, 0.00052, 0), 5),
    ((0.0004, 0.0005, 0.0006), 4), ((1.234e-4, 2.345e-4, 3), 6), ((3e-10, 4e-10), 6), ((0, 0), 0),
    ((2000.12345, 3), 3)])
def test_decimals_show_three_digits_of_tiny_values(tmp_path, values, decimals):
  events = 'patient,time,feature,value\n' + ''.join(
      f'{p},{i},x,{v}\n' for p in 'ab' for i, v in enumerate(values))
  cohort = long_csv.load(*make(tmp_path, events, 'patient,label\na,0\nb,1\n'))
  assert cohort.features[0].decimals == decimals


@pytest.mark.parametrize('zone', ['', 'Z', '+08:00', '-0500', '+08'])
def test_timestamps(tmp_path, zone):
  events = (f'patient,time,feature,value\na,2020-01-31 23:30:00{zone},x,1\na,2020-02-01T01:00:00{zone},x,2\n'
            f'b,2021-05-05T00:00{zone},x,3\n')
  cohort = long_csv.load(*make(tmp_path, events, 'patient,label\na,0\nb,1\n'))
  assert rows_of(cohort) == [('a', 0.0, 'x', 1.0), ('a', 1.5, 'x', 2.0), ('b', 0.0, 'x', 3.0)]


def test_the_oldest_are_one_group(tmp_path):
  events = 'patient,time,feature,value\n' + ''.join(f'{p},0,x,{i}\n' for i, p in enumerate('abcdef'))
  ages = ('>89', '> 89', '90+', '>=90', '90', '41')
  outcomes = 'patient,label,age\n' + ''.join(f'{p},{i % 2},{a}\n' for i, (p, a) in enumerate(zip('abcdef', ages)))
  cohort = long_csv.load(*make(tmp_path, events, outcomes))
  assert dict(zip(cohort.subject_id, cohort.age)) == dict(zip('abcdef', (90, 90, 90, 90, 90, 41)))
  refused("entries of 'age' are not plain numbers", *make(tmp_path, events, outcomes.replace('>89', '>40')))


def test_dates_alone_are_midnights(tmp_path):
  events = 'patient,time,feature,value\na,2020-01-31,x,1\na,2020-02-02,x,2\nb,2021-05-05,x,3\n'
  cohort = long_csv.load(*make(tmp_path, events, 'patient,label\na,0\nb,1\n'))
  assert cohort.hour[cohort.value == 2].tolist() == [48]


@pytest.mark.parametrize('mark', ['0001-01-01', '1900-01-01', '1970-01-01T00:00', '9999-12-31'])
@pytest.mark.parametrize('value', ['1', ''])
def test_a_date_that_stands_for_none(tmp_path, mark, value):
  time = lambda p, i: mark if p in 'ac' and i == 1 else f'{1999 + i}-03-01'  # the second row of two patients
  rows = ''.join(f'{p},{time(p, i)},x,{value if i == 1 else i}\n' for p in 'abcd' for i in range(3, 0, -1))
  args = make(tmp_path, 'patient,time,feature,value\n' + rows, 'patient,label\na,0\nb,1\n')
  match = 'data.columns.time: of 2 patients two rows lie more than 30 years apart with none between; leave a time that'
  assert mark not in refused(f'^{match}', *args, window_hours=48.0)
  with pytest.raises(EagrlError, match=f'^{match}'):
    foreign.read_unlabelled('csv', str(args[0]), '', FeatureTable((FeatureSpec('x'),)), columns=long_csv.Columns(),
                            sex_codes=None, encoding='utf8', delimiter=',', task='mortality', setting='patients')


def test_a_record_of_a_life_is_none(tmp_path):
  rows = ''.join(f'{p},{year}-01-01,x,{year}\n' for p in 'ab' for year in (1930, 2017, 1959, 1988))
  cohort = long_csv.load(*make(tmp_path, f'patient,time,feature,value\n{rows}', 'patient,label\na,0\nb,1\n'))
  assert len(cohort.value) == 8


@pytest.mark.parametrize(('first', 'second', 'match'), [
    ('2020-01-31T10:00', '2020-01-31T10:00Z', 'in several ways'),
    ('2020-01-31T10:00+01:00', '2020-01-31T10:00+02:00', 'in several ways'),
    ('3.5', '2020-01-31T10:00', 'in several ways'), ('3.5', '<4', 'in several ways'),
    ('3.5', 'noon', 'neither a number nor ISO 8601'), ('2020-13-41', '2020-01-01', 'nor ISO 8601'),
    ('20200131', '20200201', 'too large for hours')])
def test_times_that_would_need_a_guess(tmp_path, first, second, match):
  events = f'patient,time,feature,value\na,{first},x,1\nb,{second},x,2\n'
  message = refused(match, *make(tmp_path, events, 'patient,label\na,0\nb,1\n'))
  assert first not in message and 'data.columns.time' in message


@pytest.mark.parametrize(('unit', 'of_an_hour'), [('seconds', 3600), ('minutes', 60), ('hours', 1), ('days', 1 / 24)])
@pytest.mark.parametrize('kind', ['csv', 'wide_csv', 'parquet', 'new'])
def test_times_that_are_numbers_have_a_unit(tmp_path, unit, of_an_hour, kind):
  """Of the events, of when a value is known and of when a stay ends; `new`: patients without outcomes."""
  rows = [(p, h, known) for p in 'ab' for h, known in ((24, 24), (48, 72), *((50 + i, 51 + i) for i in range(200)))]
  mark = lambda h: f'{h * of_an_hour:.9g}'
  head, cell = ('patient,time,x,available', '{0},{1},1,{2}') if kind == 'wide_csv' else (
      'patient,time,feature,value,available', '{0},{1},x,1,{2}')
  events = '\n'.join([head, *(cell.format(p, mark(h), mark(known)) for p, h, known in rows)])
  paths = make(tmp_path, events + '\n', f'patient,label,until\na,0,{mark(248)}\nb,1,\n')
  reading = long_csv.Reading(time_unit=unit)
  if kind == 'new':
    cohort, _ = foreign.read_unlabelled(
        'csv', str(paths[0]), '', FeatureTable((FeatureSpec('x'),)), columns=long_csv.Columns(), sex_codes=None,
        encoding='utf8', delimiter=',', time_unit=unit, task='mortality', setting='patients', window_hours=30.0)
    assert sorted(cohort.hour)[:4] == pytest.approx([0, 0, 26, 26], abs=1e-3)  # of hour 24 it is known at 48
    return
  if kind == 'parquet':
    pq.write_table(pacsv.read_csv(paths[0]), tmp_path / 'e.parquet')
    paths = tmp_path / 'e.parquet', paths[1]
  cohort = (wide_csv if kind == 'wide_csv' else long_csv).load(*paths, reading=reading)
  last = {str(cohort.subject_id[p]): cohort.hour[cohort.patient == p].max() for p in range(2)}
  assert last == {'a': pytest.approx(223, abs=1e-3), 'b': pytest.approx(225, abs=1e-3)}


def test_an_unknown_unit_of_time_and_numbers_that_are_too_large_for_theirs(tmp_path):
  with pytest.raises(EagrlError, match="^data.time_unit='weeks' is unknown; choose one of seconds, minutes, hours,"):
    long_csv.Reading(time_unit='weeks')
  rows = 'patient,time,feature,value\na,43831,x,1\na,43833,x,2\nb,43900,x,2\n'
  paths = make(tmp_path, rows, 'patient,label\na,0\nb,1\n')
  refused('set --config.data.time_unit=days', *paths)  # as a spreadsheet writes 2020-01-01
  assert long_csv.load(*paths, reading=long_csv.Reading(time_unit='days')).hour.max() == 48
  paths = make(tmp_path, rows.replace('a,43831', 'a,20200131'), 'patient,label\na,0\nb,1\n')
  refused('too large for days; set --config.data.time_unit=', *paths, reading=long_csv.Reading(time_unit='days'))


def test_other_headers_delimiter_encoding_and_gzip(tmp_path):
  text = 'Fall;Zeit;Größe; Wert\n1;0;Größe;180\n2;0;Größe;170\n'
  (tmp_path / 'e.csv.gz').write_bytes(gzip.compress(text.encode('latin-1')))
  (tmp_path / 'o.csv').write_bytes('Fall;tot;Geschlecht\n1;true;w\n2;false;m\n'.encode('latin-1'))
  columns = long_csv.Columns(patient='Fall', time='Zeit', feature='Größe', value='Wert', outcome_patient='Fall',
                             label='tot', sex='Geschlecht')
  cohort = long_csv.load(tmp_path / 'e.csv.gz', tmp_path / 'o.csv', columns=columns,
                         reading=long_csv.Reading('latin-1', ';'),
                         sex_codes={'W': 0, 'm': 1})
  assert rows_of(cohort) == [('1', 0.0, 'Größe', 180.0), ('2', 0.0, 'Größe', 170.0)]
  found = sorted(zip(cohort.subject_id.tolist(), cohort.label.tolist(), cohort.sex.tolist()))
  assert found == [('1', 1, 0), ('2', 0, 1)]


def test_a_byte_order_mark_does_not_hide_a_column(tmp_path):
  paths = make(tmp_path, b'\xef\xbb\xbf' + EVENTS.encode(), b'\xef\xbb\xbf' + OUTCOMES.encode())
  assert len(long_csv.load(*paths, features=tmp_path / 'f.yaml')) == 2


@pytest.mark.parametrize(('outcomes', 'match'), [
    ('patient,label\na,0\na,1\nb,1\n', 'a patient has two different outcomes'),
    ('patient,label\na,0\na,0\nb,1\n', '1 patients are listed twice'),
    ('patient,label\na,0\nb,dead\n', "1 entries of 'label' are not 0, 1"),
    ('patient,label\n,0\nb,1\n', "a row has no 'patient'"),
    ('patient,label\n', 'o.csv holds no rows'), ('', 'o.csv is not a CSV'),
    ('patient,labl\na,0\nb,1\n', "o.csv has no column 'label'; the nearest header is 'labl'"),
    ('patient,label,Until\na,0,5\nb,1,5\n', "o.csv has a column 'Until', and 'until' is what would be read; rename it"),
    ('patient,label, SEX \na,0,m\nb,1,f\n', "o.csv has a column 'SEX', and 'sex' is what would be read; rename it"),
    ('patient,label,age\na,0,"4\nb,1,50\n', "o.csv has a row inside an entry of 'age'; close the quote"),
    ('PATIENT,LABEL\na,0\nb,1\n', "o.csv has no column 'patient'; the nearest header is 'PATIENT'"),
    ('patient,label\na,0\nb,0\n', 'all 2 patients are negative'),
    ('patient,label\na,1\nb,1\n', 'all 2 patients are positive'),
    ('patient,label,label\na,0,1\nb,1,0\n', "data.outcomes: o.csv has two columns 'label'; keep one"),
    ('patient,label,sex, sex \na,0,m,f\nb,1,f,m\n', "data.outcomes: o.csv has two columns 'sex'; keep one"),
    ('patient,label\nx,1\ny,0\n', "no id in 'patient' occurs in the events"),
    ('patient,label\na,0\nB,1\nb,1\n', '1 patients have two ids'),
    ('patient,label,sex\na,0,1\nb,1,2\n', "2 entries of 'sex' have an unknown code"),
    ('patient,label,age\na,0,old\nb,1,60\n', "1 entries of 'age' are not plain numbers"),
    ('patient,label,age\na,0,-3\nb,1,60\n', 'data.age: 1 ages'),
    ('patient,label\na,0,3\nb,1\n', 'o.csv is not a CSV .* at row 2')])
def test_bad_outcomes(tmp_path, outcomes, match):
  refused(match, *make(tmp_path, outcomes=outcomes), features=tmp_path / 'f.yaml')


@pytest.mark.parametrize(('columns', 'features', 'match'), [
    ({'feature': 'patient'}, True, '3 of 3 names'), ({'unit': 'patient'}, True, 'an entry that is no unit'),
    ({'unit': 'value'}, True, 'an entry that is no unit'), ({'feature': 'patient'}, False, 'also an id or a number')])
def test_a_column_taken_for_another_shows_no_entry(tmp_path, columns, features, match):
  rows = [f'{p},0,sodium,{v},mmol/L\n' for p, v in (('sodiun', 141), ('Bq7', 139), ('K1', 140))]
  args = make(tmp_path, ''.join(['patient,time,feature,value,unit\n', *rows, 'K1,1,sodium,138,mg\n']),
              'patient,label\nsodiun,1\nBq7,0\nK1,1\n')
  table = tmp_path / 'f.yaml' if features else None
  message = refused(match, *args, columns=long_csv.Columns(**columns), features=table)
  assert not any(x in message for x in ('sodiun', 'Bq7', 'K1', '141', '139', '140'))


@pytest.mark.parametrize(('events', 'match'), [
    ('', 'e.csv is not a CSV'), ('patient,time,feature,value\n', 'holds no row'),
    ('patient,time,feature,value,Unit\na,0,sodium,1,mmol/L\n', "a column 'Unit', and 'unit' is what would be read"),
    ('patient,time,feature,val\na,0,sodium,1\n', "no column 'value'; the nearest header is 'val'"),
    ('patient,time,feature,value,value\na,0,sodium,1,2\n', "data.path: e.csv has two columns 'value'; keep one"),
    ('patient,time,feature,value\na,0,sodiun,1\n', "unknown feature 'sodiun'; did you mean 'serum sodium'"),
    ('patient,time,feature,value,unit\na,0,sodium,1,mg/dL\n', "'serum sodium' occurs in 'mg/dL'"),
    ('patient,time,feature,value\n007,0,sodium,1\n7,0,sodium,1\n', '1 patients have two ids'),
    ('patient,time,feature,value\n7.0,0,sodium,1\n7,0,sodium,1\n', '1 patients have two ids'),
    ('patient,time,feature,value\na,0,sodium,secret,9\n', 'e.csv is not a CSV .* at row 2'),
    (b'patient,time,feature,value\na,0,sodi\xfcm,1\n', 'e.csv is not a CSV in utf8')])
def test_bad_events(tmp_path, events, match):
  message = refused(match, *make(tmp_path, events), features=tmp_path / 'f.yaml')
  assert 'secret' not in message


def test_columns_that_are_not_used_may_have_one_name(tmp_path):
  paths = make(tmp_path, 'patient,time,feature,value,note,note\na,0,sodium,1,p,q\nb,0,sodium,2,r,s\n',
               'patient,label,note,note\na,0,p,q\nb,1,r,s\n')
  assert sorted(long_csv.load(*paths, features=tmp_path / 'f.yaml').value) == [1, 2]


def test_two_units_without_a_spec_and_absent_files(tmp_path):
  refused("'temperature' occurs in 2 units; check .*, or give a features file", *make(tmp_path))
  refused('data.path: there is no file', tmp_path, tmp_path / 'o.csv')
  refused('data.outcomes: there is no file', tmp_path / 'e.csv', tmp_path / 'absent.csv')
  refused("no column 'units'", *make(tmp_path), columns=long_csv.Columns(unit='units'))


def test_blocks_join(tmp_path):
  rng = np.random.default_rng(0)
  n = 700_000  # more than one 16 MB block
  who, hour, value = rng.integers(0, 50, n), np.arange(n) / 1000, rng.integers(0, 1000, n)
  text = 'patient,time,feature,value\n' + ''.join(
      f'p{p},{h:.3f},a feature with a longer name,{v}\n' for p, h, v in zip(who, hour, value))
  assert len(text) > 16 << 20
  cohort = long_csv.load(*make(tmp_path, text, 'patient,label\n' + ''.join(f'p{i},{i % 2}\n' for i in range(50))))
  assert len(cohort.value) == n
  mine = cohort.patient == cohort.subject_id.tolist().index('p7')
  np.testing.assert_array_equal(cohort.value[mine], value[who == 7])
  np.testing.assert_allclose(cohort.hour[mine], hour[who == 7] - hour[who == 7][0], atol=1e-4)


def test_sodium_is_a_feature_and_a_missing_value(tmp_path):
  events = 'patient,time,feature,value\na,0,NA,140\nb,0, NA ,141\nb,1,K,NA\nNA,1,K,4\nb,2,nan,4\nb,2,K,4\n'
  cohort = long_csv.load(*make(tmp_path, events, 'patient,label,age\na,0,NA\nb,1,60\n'))
  assert rows_of(cohort) == [('a', 0.0, 'NA', 140.0), ('b', 0.0, 'NA', 141.0), ('b', 2.0, 'K', 4.0)]
  counts = {step: count for step, count, _ in cohort.attrition}
  assert counts['without patient, time or feature'] == 2 and counts['without value'] == 1 and counts['text'] == 0
  assert sorted(np.isnan(cohort.age).tolist()) == [False, True]


def test_units_in_two_spellings_are_one(tmp_path):
  events = 'patient,time,feature,value,unit\na,0,x,1,°C\nb,0,x,2,degC\nb,1,x,2,deg C\n'
  cohort = long_csv.load(*make(tmp_path, events, 'patient,label\na,0\nb,1\n'))
  assert sorted(cohort.value.tolist()) == [1, 2, 2] and len(cohort.features) == 1


def test_times_of_knowledge_and_of_the_end(tmp_path):
  events = 'patient,time,feature,value,known\n' + ''.join(
      f'{p},2020-01-01T{h:02d}:00,x,{h},2020-01-01T{h:02d}:30\n' for p in 'ab' for h in range(24))
  outcomes = 'patient,label,died\na,1,2020-01-01T23:15\nb,0,\n'
  columns = long_csv.Columns(available='known', until='died')
  cohort = long_csv.load(*make(tmp_path, events, outcomes), columns=columns)
  assert sorted((str(cohort.subject_id[p]), v) for p, v in zip(cohort.patient, cohort.value) if v > 21) == [
      ('a', 22), ('b', 22), ('b', 23)]
  refused("no column 'knwn'; the nearest header is 'known'", *make(tmp_path, events, outcomes),
          columns=long_csv.Columns(available='knwn'))
  hours = outcomes.replace('2020-01-01T', '').replace('23:15', '23')
  refused(r"data.columns.until \('died'\): times are written in several ways", *make(tmp_path, events, hours),
          columns=columns)
