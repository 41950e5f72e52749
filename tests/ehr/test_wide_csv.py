from __future__ import annotations

import gzip

import numpy as np
import pyarrow as pa
import pytest

from eagrl_jax.ehr import store
from eagrl_jax.ehr.sources import long_csv, wide_csv
from eagrl_jax.stages import foreign
from eagrl_jax.types import EagrlError

EVENTS = """patient,time,lactate,temperature,sodium
units,,mmol/L,degF,
a,0,,,
a,1.5,2.0,98.6,
a,2.5,<0.5,,NA
b,10,clotted,98.6,140
b,12,,,141
c,0,1.0,,
"""
OUTCOMES = 'patient,label,age,sex\nb,1,70,F\na,0,60.5,male\n'
SPEC = """
- {name: lactate, unit: mmol/L, hard_low: 0, hard_high: 50}
- {name: temperature, unit: degC, accepted_units: [[degF, 0.5555555555555556, -17.77777777777778]]}
- {name: serum sodium, unit: mmol/L, aliases: [sodium]}
"""


def make(tmp_path, events=EVENTS, outcomes=OUTCOMES):
  for name, text in (('e.csv', events), ('o.csv', outcomes), ('f.yaml', SPEC)):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
  return tmp_path / 'e.csv', tmp_path / 'o.csv'


def rows_of(cohort):
  return sorted((str(cohort.subject_id[p]), float(h), cohort.features[int(f)].name, round(float(v), 3))
                for p, h, f, v in zip(cohort.patient, cohort.hour, cohort.feature, cohort.value))


def test_cells_units_and_counts(tmp_path):
  cohort = wide_csv.load(*make(tmp_path), features=tmp_path / 'f.yaml')
  assert rows_of(cohort) == [
      ('a', 0.0, 'lactate', 2.0), ('a', 0.0, 'temperature', 37.0), ('a', 1.0, 'lactate', 0.5),
      ('b', 0.0, 'serum sodium', 140.0), ('b', 0.0, 'temperature', 37.0), ('b', 2.0, 'serum sodium', 141.0)]
  assert set(cohort.attrition) >= {
      ('read', 3, 'patients'), ('read', 9, 'rows'), ('without value', 1, 'values'), ('text', 1, 'values'),
      ('assay limit written as < or >', 1, 'values'), ('without outcome', 1, 'patients'), ('kept', 6, 'values')}


def test_the_same_as_the_long_file(tmp_path):
  rng = np.random.default_rng(0)
  names = [f'feature {i}' for i in range(30)]
  values = rng.normal(5, 1, (55_000, len(names))).round(12)  # more than one 16 MB block
  values[rng.random(values.shape) < 0.3] = np.nan
  cell = lambda x: '' if np.isnan(x) else str(x)
  rows = [f'p{i % 7},{i // 7},' + ','.join(map(cell, row)) for i, row in enumerate(values)]
  outcomes = 'patient,label\n' + ''.join(f'p{i},{i % 2}\n' for i in range(7))
  wide, where = make(tmp_path, '\n'.join([','.join(['patient', 'time', *names]), *rows]) + '\n', outcomes)
  assert wide.stat().st_size > 16 << 20
  long = tmp_path / 'long.csv'
  long.write_text('patient,time,feature,value\n' + ''.join(
      f'p{i % 7},{i // 7},{n},{x}\n' for i, row in enumerate(values) for n, x in zip(names, row) if not np.isnan(x)))
  got, expected = wide_csv.load(wide, where), long_csv.load(long, where, name='wide_csv')
  assert got.features.names == expected.features.names
  for field in ('subject_id', 'label', 'patient', 'hour', 'feature', 'value'):
    np.testing.assert_array_equal(getattr(got, field), getattr(expected, field))


def test_other_headers_delimiter_encoding_and_gzip(tmp_path):
  (tmp_path / 'e.csv.gz').write_bytes(gzip.compress('Fall;Zeit; Größe\n1;0;180\n2;0;170\n'.encode('latin-1')))
  (tmp_path / 'o.csv').write_bytes('Fall;tot\n1;true\n2;false\n'.encode('latin-1'))
  columns = long_csv.Columns(patient='Fall', time='Zeit', outcome_patient='Fall', label='tot')
  cohort = wide_csv.load(tmp_path / 'e.csv.gz', tmp_path / 'o.csv', columns=columns,
                         reading=long_csv.Reading('latin-1', ';'))
  assert rows_of(cohort) == [('1', 0.0, 'Größe', 180.0), ('2', 0.0, 'Größe', 170.0)]


@pytest.mark.parametrize(('ending', 'codec'), [('gz', 'gzip'), ('bz2', 'bz2'), ('zst', 'zstd'), ('lz4', 'lz4')])
def test_packed_files_as_long_csv_takes_them(tmp_path, ending, codec):
  make(tmp_path)
  path = tmp_path / f'e.csv.{ending}'

  def packed(text):
    with pa.CompressedOutputStream(str(path), codec) as file:
      file.write(text.encode())
    return path
  plain = rows_of(wide_csv.load(tmp_path / 'e.csv', tmp_path / 'o.csv', features=tmp_path / 'f.yaml'))
  assert rows_of(wide_csv.load(packed(EVENTS), tmp_path / 'o.csv', features=tmp_path / 'f.yaml')) == plain
  new, _ = foreign.read_unlabelled('wide_csv', str(path), '', store.read_features(tmp_path / 'f.yaml'), task='x',
                                   columns=long_csv.Columns(), sex_codes=None, encoding='utf8', delimiter=',',
                                   setting='x')
  assert len(new.value) == len(plain) + 1  # that of the patient without an outcome
  with pytest.raises(EagrlError, match=f'e.csv.{ending} is not a CSV in utf8 separated by .,. at row 3; check'):
    wide_csv.load(packed(EVENTS.replace('a,0,,,', 'a,0,,,,secret')), tmp_path / 'o.csv')


@pytest.mark.parametrize(('events', 'match'), [
    ('', 'e.csv is not a CSV'), ('patient,time,sodium\n', 'e.csv holds no row'),
    ('patient,sodium\na,1\n', "no column 'time'; the nearest header"),
    ('patient,time,sodium,sodium\na,0,1,2\n', "two columns 'sodium'; keep one"),
    ('patient,time,sodium,Sodium\na,0,1,2\n', "two columns 'sodium'; keep one"),
    ('patient,time,feature,value\na,0,sodium,1\n', 'so it is a long file: choose the variant :csv'),
    ('patient,time,Available,sodium\na,0,1,2\n', "a column 'Available', and 'available' is what would be read"),
    ('patient,time,sodium\na,0,"1\na,1,2\na,2,3\n', "e.csv has a row inside an entry of 'sodium'; close the"),
    ('patient,time,sodium,\na,0,1,2\n', 'a column without a header'),
    ('patient,time,sodium,label\na,0,1,1\n', "the column 'label' belongs to the outcomes file; remove it"),
    ('patient,time,sodium,age\na,0,1,1\n', "the column 'age' belongs to the outcomes file; remove it"),
    ('patient,time,sodium,LABEL \na,0,1,1\n', "the column 'LABEL' belongs to the outcomes file; remove it"),
    ('patient,time,sodium,_Until\na,0,1,9\n', "the column '_Until' belongs to the outcomes file; remove it"),
    ('patient,time,sodiun\na,0,1\n', "unknown feature 'sodiun'; did you mean 'serum sodium'"),
    ('patient,time,sodium\nunit,,mg\na,0,1\n', "'serum sodium' occurs in 'mg'"),
    ('patient,time,sodium\na,noon,1\n', 'data.columns.time: a time is neither'),
    ('patient,time,sodium\na,0,secret,9\n', 'e.csv is not a CSV .* at row 2'),
    (b'patient,time,sodi\xfcm\na,0,1\n', 'e.csv is not a CSV in utf8')])
def test_bad_files_are_one_line(tmp_path, events, match):
  with pytest.raises(EagrlError, match=match) as caught:
    wide_csv.load(*make(tmp_path, events), features=tmp_path / 'f.yaml')
  assert '\n' not in str(caught.value) and 'secret' not in str(caught.value)


def test_renamed_columns_of_the_outcomes_file_are_no_features(tmp_path):
  columns = long_csv.Columns(outcome_patient='Stay', label='died', until='time', available='until')
  for own in ('Died', 'STAY'):
    paths = make(tmp_path, f'patient,time,until,Label,{own}\na,0,0,1,1\nb,0,0,2,2\n', 'Stay,died\na,0\nb,1\n')
    with pytest.raises(EagrlError, match=f"the column '{own}' belongs to the outcomes file"):
      wide_csv.load(*paths, columns=columns)
  paths = make(tmp_path, 'patient,time,until,Label\na,0,0,1\nb,0,0,2\n', 'Stay,died,time\na,0,1\nb,1,1\n')
  assert wide_csv.load(*paths, columns=columns).features.names == ('Label',)


def test_absent_files(tmp_path):
  make(tmp_path)
  with pytest.raises(EagrlError, match='data.path: there is no file absent.csv'):
    wide_csv.load(tmp_path / 'absent.csv', tmp_path / 'o.csv')
  with pytest.raises(EagrlError, match='data.outcomes: there is no file absent.csv'):
    wide_csv.load(tmp_path / 'e.csv', tmp_path / 'absent.csv')
