"""Long and wide tables as parquet, which has types where a CSV has text; of known and of new patients."""

from __future__ import annotations

import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.sources import long_csv
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


def test_durations_say_when_a_value_is_known_and_a_stay_ends_too(tmp_path):
  span = lambda *hours: pa.array([datetime.timedelta(hours=h) for h in hours], pa.duration('us'))
  path, _ = long(tmp_path, span(*range(200), 0), patient=['a'] * 200 + ['b'], feature=['x'] * 201,
                 value=[float(i) for i in range(201)], known=span(*range(1, 201), 0))
  where = tmp_path / 'o.parquet'
  pq.write_table(pa.table({'patient': ['a', 'b'], 'label': [True, False], 'end': span(199, 300)}), where)
  cohort = long_csv.load(path, where, columns=long_csv.Columns(available='known', until='end'))
  assert len(cohort.value) == 200 and cohort.hour.max() == 198  # of hour 199 it is known at 200


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
