"""What fuzzing found in the readers of patient data, one small case each."""

from __future__ import annotations

import codecs
import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_meds
import test_tjh
import test_yaib

from eagrl_jax.ehr import store
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.sources import long_csv, physionet2012, tjh, wide_csv
from eagrl_jax.ehr.sources.csv_text import Reading
from eagrl_jax.stages import foreign
from eagrl_jax.types import EagrlError

EVENTS = 'patient,time,feature,value\na,0,x,1\na,1,x,{}\nb,0,x,2\n'
OUTCOMES = 'patient,label\na,0\nb,1\n'


def write(folder, events, outcomes=OUTCOMES, encoding='utf8'):
  (folder / 'e.csv').write_text(events, encoding=encoding)
  (folder / 'o.csv').write_text(outcomes, encoding=encoding)
  return folder / 'e.csv', folder / 'o.csv'


def steps_of(cohort):
  return {step: n for step, n, _ in cohort.attrition}


@pytest.mark.parametrize(('text', 'message'), [
    ('- {name: a, aliases: [5]}', "'a': entries of aliases must be texts"),
    ('- {name: a, aliases: [[b]]}', "'a': entries of aliases must be texts"),
    ('- {name: a, sentinels: [x]}', "'a': entries of sentinels must be numbers"),
    ('- {name: a, sentinels: [true]}', "'a': entries of sentinels must be numbers"),
    ('- {name: a, decimals: -1}', "'a': decimals must be 0 to 6"), ('- {name: a, decimals: 7}', '0 to 6'),
    ('- {name: a, decimals: true}', "'a': decimals has the wrong type"),
    ('- {name: a, hard_high: 1.0e+39}', "'a': hard_high has the wrong type"),
    ('- {name: a, ref_low: .nan}', "'a': ref_low has the wrong type"),
    ('- {name: a, levels: [[true, yes-]]}', "'a': an entry of levels must be"),
    ('- {name: [a, b]}', 'entries that each have a name'), ('- {name: "  "}', 'entries that each have a name'),
    ('- {name: a, group: 2020-13-45}', 'f.yaml holds an entry that YAML or JSON cannot mean'),
    ('- {name: a, group: !!int ""}', 'cannot mean'), ('[' * 1000, 'cannot mean')])
def test_a_feature_file_with_entries_of_another_kind(tmp_path, text, message):
  (tmp_path / 'f.yaml').write_text(text)
  with pytest.raises(EagrlError, match=message) as caught:
    store.read_features(tmp_path / 'f.yaml')
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('delimiter', ['', ',,', 'é', '\n', '"', '\0'])
def test_a_delimiter_that_cannot_be_one(delimiter):
  with pytest.raises(EagrlError, match=r'data\.delimiter=.* one ASCII character'):
    Reading('utf8', delimiter)


@pytest.mark.parametrize('encoding', ['', 'x', 'hex', 'rot13', 'undefined', 'punycode', 'utf8\n', '\0'])
def test_an_encoding_that_is_none(encoding):
  with pytest.raises(EagrlError, match=r'data\.encoding=.* is no encoding of text') as caught:
    Reading(encoding)
  assert '\n' not in str(caught.value)


def test_a_wide_csv_in_utf16_has_one_mark_of_byte_order(tmp_path):
  table = 'patient,time,x,y\na,0,1,2\na,1,3,4\nb,0,5,6\n'
  plain = wide_csv.load(*write(tmp_path, table))
  packed = wide_csv.load(*write(tmp_path, table, encoding='utf-16'), reading=Reading('utf-16'))
  assert packed.subject_id.tolist() == plain.subject_id.tolist() and packed.value.tolist() == plain.value.tolist()


def test_utf16_without_its_mark(tmp_path):
  paths = write(tmp_path, EVENTS.format(1))
  paths[0].write_bytes(paths[0].read_text().encode('utf-16')[len(codecs.BOM_UTF16):])
  (tmp_path / 'o.csv').write_text(OUTCOMES, encoding='utf-16')
  with pytest.raises(EagrlError, match='not a CSV in utf-16'):
    wide_csv.load(*paths, reading=Reading('utf-16'))


@pytest.mark.parametrize('value', ['1e300', '-1e300', '1' * 400])
def test_a_value_too_large_for_float32_is_counted_in_silence(tmp_path, value):
  paths = write(tmp_path, EVENTS.format(value))
  table = FeatureTable((FeatureSpec('x'),))
  new, _ = foreign.read_unlabelled('csv', str(paths[0]), '', table, columns=long_csv.Columns(), sex_codes=None,
                                   encoding='utf8', delimiter=',', task='mortality', setting='patients')
  for cohort in (long_csv.load(*paths), new):
    assert steps_of(cohort)['not finite'] == 1 and sorted(cohort.value) == [1, 2]


def test_so_in_tables_read_through_the_database(tmp_path):
  dyn = {'hr': [80.0, None, 90, 99, 70, 75, 60], 'crea': [None, 1e300, None, None, 2.0, None, 1.0]}
  cohort = test_yaib.load(test_yaib.make(tmp_path, dyn=dyn))
  assert steps_of(cohort)['not finite'] == 1 and np.isinf(cohort.rejects.value).sum() == 1


def stays(folder, outcomes: bytes):
  for name in ('1', '2'):
    (folder / f'{name}.txt').write_text(f'Time,Parameter,Value\n00:00,RecordID,{name}\n00:00,Age,50\n00:07,HR,80\n')
  (folder / 'Outcomes-a.txt').write_bytes(outcomes)
  return physionet2012.load(folder, folder / 'Outcomes-a.txt')


@pytest.mark.parametrize(('outcomes', 'message'), [
    (b'RecordID,In-hospital_death,RecordID\n1,0,1\n2,1,2\n', "two columns 'RecordID'"),
    (b'RecordID,In-hospital_death,Length_of_stay,Length_of_stay\n1,0,1,1\n2,1,1,1\n', "two columns 'Length_of_stay'"),
    (b'\xff,RecordID,In-hospital_death\n1,1,0\n2,2,1\n', 'not the comma-separated outcomes file')])
def test_headers_of_an_outcomes_file(tmp_path, outcomes, message):
  with pytest.raises(EagrlError, match=message):
    stays(tmp_path, outcomes)


def test_a_length_of_stay_that_is_a_word(tmp_path):
  cohort = stays(tmp_path, b'RecordID,In-hospital_death, Length_of_stay\n1,0,x\n2,1,5\n')
  assert len(cohort) == 2 and cohort.stay_end is None


def test_a_time_with_a_zone_among_those_without(tmp_path):
  row = test_tjh.row
  rows = [row(1, datetime.datetime(2020, 2, 1)), row(1, '2020-02-01T10:00+08:00')]
  with pytest.raises(EagrlError, match="'RE_DATE' holds something that is not a date without a time zone"):
    tjh.load(test_tjh.write(tmp_path / 'a.xlsx', rows=rows))


def test_meds_codes_that_are_numbers_and_units_that_are(tmp_path):
  made = test_meds.make(tmp_path)
  for path in (made / 'set').rglob('*.parquet'):
    table = pq.read_table(path)
    numbers = pa.array(range(len(table)))
    pq.write_table(table.append_column('unit', numbers), path)
  with pytest.raises(EagrlError, match=r"occurs in what is no unit"):
    test_meds.load(made)
  for path in (made / 'set').rglob('*.parquet'):
    table = pq.read_table(path).drop_columns('unit')
    pq.write_table(table.set_column(2, 'code', pa.array(range(len(table)))), path)
  with pytest.raises(EagrlError, match="'code' in data is of type int64; write text"):
    test_meds.load(made)


def test_a_column_name_that_is_no_text(tmp_path):
  """In each of the three readers of parquet files."""
  table = pa.table({'stay_id': [1, 2], 'label': [0, 1], 'spoilt': [0, 1]})

  def damaged(path):
    pq.write_table(table, path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b'spoilt', b'\x80poilt'))
    return path

  damaged(test_yaib.make(tmp_path) / 'outc.parquet')
  with pytest.raises(EagrlError, match=r'outc\.parquet is no parquet file, or damaged'):
    test_yaib.load(tmp_path)
  made = test_meds.make(tmp_path / 'meds')
  for path in (made / 'set').rglob('*.parquet'):
    damaged(path)
  with pytest.raises(EagrlError, match='damaged or holds a file that is no parquet'):
    test_meds.load(made)
  _, outcomes = write(tmp_path, EVENTS)
  with pytest.raises(EagrlError, match=r'x\.parquet is not a parquet file of plain columns'):
    long_csv.load(damaged(tmp_path / 'x.parquet'), outcomes)
