"""Long and wide tables as parquet, which has types where a CSV has text; of known and of new patients."""

from __future__ import annotations

import dataclasses
import datetime

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.sources import csv_text, long_csv, wide_csv
from eagrl_jax.stages import foreign
from eagrl_jax.types import EagrlError

RUN = FeatureTable((FeatureSpec('x'),))
HOURS = [0.0, 1.5, 24.0, 0.25]
START = datetime.datetime(2020, 3, 28, 22, 15)
SECOND = [int(h * 3600) for h in HOURS]


def long(folder, time, **change):
  events = {'patient': ['a', 'a', 'a', 'b'], 'time': time, 'feature': ['x'] * 4, 'value': [1.0, 2, 3, 4], **change}
  pq.write_table(pa.table({name: column for name, column in events.items() if column is not None}),
                 folder / 'e.parquet')
  return folder / 'e.parquet', outcomes(folder)


def outcomes(folder, text='patient,label\na,0\nb,1\n'):
  (folder / 'o.csv').write_text(text)
  return folder / 'o.csv'


def new(path, kind='csv', columns=long_csv.Columns(), table=RUN, decimal='.'):
  return foreign.read_unlabelled(kind, str(path), '', table, columns=columns, sex_codes=None, encoding='utf8',
                                 delimiter=';', decimal=decimal, task='mortality', setting='patients')[0]


def rows_of(cohort):
  return sorted((str(cohort.subject_id[p]), float(h), cohort.features[int(f)].name, float(v))
                for p, h, f, v in zip(cohort.patient, cohort.hour, cohort.feature, cohort.value))


EXPECTED = [('a', 0, 'x', 1), ('a', 1.5, 'x', 2), ('a', 24, 'x', 3), ('b', 0, 'x', 4)]
FACTOR = {'s': 1, 'ms': 10**3, 'us': 10**6, 'ns': 10**9}


@pytest.mark.parametrize('unit', FACTOR)
@pytest.mark.parametrize('decimal', '.,')
def test_a_duration_is_so_many_hours(tmp_path, unit, decimal):
  time = pa.array([s * FACTOR[unit] for s in SECOND], pa.duration(unit))
  path, _ = long(tmp_path, time)
  where = outcomes(tmp_path, 'patient;label\na;0\nb;1\n')
  reading = long_csv.Reading('utf8', ';', decimal)
  assert rows_of(long_csv.load(path, where, reading=reading)) == rows_of(new(path, decimal=decimal)) == EXPECTED
  for of_numbers in ('minutes', 'days'):  # a duration says its own unit
    rows = rows_of(long_csv.load(path, where, reading=dataclasses.replace(reading, time_unit=of_numbers)))
    assert [row[::2] for row in rows] == [row[::2] for row in EXPECTED]
    assert [row[1] for row in rows] == pytest.approx([row[1] for row in EXPECTED])


def test_durations_say_when_a_value_is_known_and_a_stay_ends_too(tmp_path):
  span = lambda *hours: pa.array([datetime.timedelta(hours=h) for h in hours], pa.duration('us'))
  path, _ = long(tmp_path, span(*range(200), 0), patient=['a'] * 200 + ['b'], feature=['x'] * 201,
                 value=[float(i) for i in range(201)], known=span(*range(1, 201), 0))
  where = tmp_path / 'o.parquet'
  pq.write_table(pa.table({'patient': ['a', 'b'], 'label': [True, False], 'end': span(199, 300)}), where)
  cohort = long_csv.load(path, where, columns=long_csv.Columns(available='known', until='end'))
  assert len(cohort.value) == 200 and cohort.hour.max() == 198  # of hour 199 it is known at 200


def test_lines_within_a_cell_are_no_lost_rows(tmp_path):
  path, where = long(tmp_path, HOURS, value=['1', '2', '3,\nseen,by,hand', '4'])  # text where a number should be
  cohort = long_csv.load(path, where)
  assert len(cohort.value) == 3 and ('text', 1, 'values') in cohort.attrition


def test_a_duration_is_no_value(tmp_path):
  paths = long(tmp_path, HOURS, value=pa.array(SECOND, pa.duration('s')))
  with pytest.raises(EagrlError, match=r"^data.path: 'value' in e.parquet is of type duration\[s\].*write numbers$"):
    long_csv.load(*paths)


@pytest.mark.parametrize('unit', FACTOR)
@pytest.mark.parametrize('zone', [None, 'UTC', 'Europe/Berlin'])  # where summer begins between the rows
def test_instants_of_any_resolution(tmp_path, unit, zone):
  first = int(START.replace(tzinfo=datetime.UTC).timestamp())
  path, where = long(tmp_path, pa.array([(first + s) * FACTOR[unit] for s in SECOND], pa.timestamp(unit, zone)))
  assert rows_of(long_csv.load(path, where)) == rows_of(new(path)) == EXPECTED


def test_text_with_more_digits_than_microseconds(tmp_path):
  end = '2020-03-31 00:00:00.000000001'
  for zone in ('', 'Z', '+01:00'):
    stamps = [(START + datetime.timedelta(hours=h)).isoformat() + f'.000000999{zone}' for h in HOURS]
    rows = ''.join(f'{p},{t},x,{v}\n' for p, t, v in zip('aaab', stamps, (1, 2, 3, 4)))
    (tmp_path / 'e.csv').write_text('patient,time,feature,value\n' + rows)
    where = outcomes(tmp_path, f'patient,label,until\na,0,{end}{zone}\nb,1,\n')
    assert rows_of(long_csv.load(tmp_path / 'e.csv', where)) == EXPECTED


@pytest.mark.parametrize('twice', ['value', 'note'])
def test_two_columns_of_one_name_are_refused_where_they_are_used(tmp_path, twice):
  path, where = long(tmp_path, HOURS, note=list('pqrs'))
  table = pq.read_table(path)
  pq.write_table(table.append_column(twice, table[twice]), path)
  for load in (lambda: long_csv.load(path, where), lambda: new(path)):
    if twice == 'note':
      assert rows_of(load()) == EXPECTED
    else:
      with pytest.raises(EagrlError, match="^data.path: e.parquet has two columns 'value'; keep one$"):
        load()


WIDE = FeatureTable((FeatureSpec('lactate'), FeatureSpec('serum sodium', aliases=('Na',)), FeatureSpec('pH')))


def wide(folder, **change):
  table = {'patient': pa.array([7, 7, 7, 8]), ' time ': pa.array([s * 10**9 for s in SECOND], pa.duration('ns')),
           'lactate': pa.array([1.5, None, float('nan'), 0.25], pa.float32()), 'Na': pa.array([None, 140, 141, 139]),
           'pH': pa.array([None, None, '<7.2', None]), **change}
  pq.write_table(pa.table({name: column for name, column in table.items() if column is not None}),
                 folder / 'w.parquet')
  return folder / 'w.parquet', outcomes(folder, 'patient,label\n7,0\n8,1\n')


def test_a_wide_table_of_known_and_of_new_patients(tmp_path):
  path, where = wide(tmp_path)
  known, unknown = wide_csv.load(path, where), new(path, 'wide_csv', table=WIDE)
  expected = [('7', 0, 'lactate', 1.5), ('7', 1.5, 'Na', 140), ('7', 24, 'Na', 141),
              ('7', 24, 'pH', pytest.approx(7.2)), ('8', 0, 'Na', 139), ('8', 0, 'lactate', 0.25)]
  assert rows_of(known) == expected and {('read', 6, 'rows'), ('without value', 0, 'values')} <= set(known.attrition)
  assert [(*row[:2], row[3]) for row in rows_of(unknown)] == [
      (*row[:2], row[3]) for row in sorted((p, h, n.replace('Na', 'serum sodium'), v) for p, h, n, v in expected)]
  assert known.censor.tolist().count(-1) == unknown.censor.tolist().count(-1) == 1


@pytest.mark.parametrize('cells', [1, 7])
def test_a_wide_table_in_blocks_is_the_same_as_text(tmp_path, monkeypatch, cells):
  monkeypatch.setattr(csv_text, '_CELLS', cells)
  text = pa.array(['unit', '7', '7', '8']), pa.array(['', *'012']), pa.array(['mmol/L', '1,5', '', '3'])
  table = pa.table(dict(zip(('patient', 'time', 'Größe 体'), text)))
  pq.write_table(table, tmp_path / 'w.parquet')
  pacsv.write_csv(table, tmp_path / 'w.csv', pacsv.WriteOptions(delimiter=';'))
  where = outcomes(tmp_path, 'patient;label\n7;0\n8;1\n')
  plain = wide_csv.load(tmp_path / 'w.csv', where, reading=long_csv.Reading('utf8', ';', ','))
  packed = wide_csv.load(tmp_path / 'w.parquet', where, reading=long_csv.Reading('latin-1', ';', ','))
  assert rows_of(plain) == rows_of(packed) == [('7', 0, 'Größe 体', 1.5), ('8', 0, 'Größe 体', 3)]
  assert plain.features.to_json() == packed.features.to_json() and plain.features[0].unit == 'mmol/L'


@pytest.mark.parametrize(('change', 'match'), [
    ({' time ': None}, "w.parquet has no column 'time'; the nearest header"),
    ({'__index_level_0__': [0, 1, 2, 3]}, 'w.parquet has a column without a header'),
    ({'na': [1, 2, 3, 4]}, "w.parquet has two columns 'Na'; keep one"),
    ({'label': [0, 0, 0, 1]}, "the column 'label' belongs to the outcomes file; remove it from w.parquet"),
    ({'x': pa.array([1, 2, 3, 4], pa.duration('s'))}, r"'x' in w.parquet is of type duration\[s\]"),
    ({'x': [[1]] * 4}, 'w.parquet is not a parquet file of plain columns'),
    ({'lactate': None, 'Na': None, 'pH': None}, 'w.parquet holds no row with patient, time and feature')])
def test_a_bad_wide_table_is_one_line(tmp_path, change, match):
  path, where = wide(tmp_path, **change)
  for read in (lambda: wide_csv.load(path, where), lambda: new(path, 'wide_csv', table=WIDE)):
    with pytest.raises(EagrlError, match=f'^data.path: .*{match}') as caught:
      read()
    assert '\n' not in str(caught.value)


def test_a_table_without_columns(tmp_path):
  pq.write_table(pa.table({}), tmp_path / 'w.parquet')
  for kind in foreign.CSV:
    with pytest.raises(EagrlError, match='^data.path: w.parquet holds no columns'):
      new(tmp_path / 'w.parquet', kind)
