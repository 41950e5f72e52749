"""Model-written answers, CSV files, stays of PhysioNet."""

from __future__ import annotations

import gzip
import pathlib
import re
import tempfile
import time

from hypothesis import given
from hypothesis import strategies as st
from material import CELL, refused_or_sound

from eagrl_jax.ehr import answers
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.sources import damage, long_csv, physionet2012

TABLE = FeatureTable((FeatureSpec('lactate', 'mmol/L'), FeatureSpec('SpO2', '%'), FeatureSpec('pH', '')))
PIECES = st.sampled_from([
    '<Final answer>', '</Final answer>', '<Important Features>', '</Important Features>', '<Subquestion 1>',
    '</Subquestion 1>', '<Answer 1>', '</Answer 1>', '<', '>', '0.5', '1e400', '-0.3', '50%', '.', ',', ';', '\n',
    '\x00', 'lactate', 'pH', 'I do not know', '0' * 400, '<script>alert(1)</script>', '\ud7ff', '٠٫٥', '０．５',
    'NaN', 'inf'])


@given(st.lists(st.one_of(PIECES, st.text(max_size=12)), max_size=40).map(''.join))
def test_an_answer_is_read_or_not(text):
  begun = time.process_time()
  found = answers.parse(text, TABLE)
  assert time.process_time() - begun < 1
  assert found.probability is None or 0 <= found.probability <= 1
  assert len(set(found.features)) == len(found.features) and all(0 <= f < 3 for f in found.features)
  assert found.listed is None or 20 <= found.listed[0] <= found.listed[1] <= len(text)


GOOD_EVENTS = 'patient,time,feature,value,unit\na,0,lactate,1.5,mmol/L\nb,1,pH,7.4,\n'
GOOD_OUTCOMES = 'patient,label,age,sex\na,0,50,m\nb,1,60,f\n'


def rows(header: str, width: int):
  line = st.lists(CELL, min_size=max(width - 1, 0), max_size=width + 1).map(','.join)
  return st.lists(line, max_size=6).map(lambda lines: '\n'.join([header, *lines]) + '\n')


@given(st.one_of(rows('patient,time,feature,value,unit', 5), st.text(max_size=60)),
       st.one_of(st.just(GOOD_OUTCOMES), rows('patient,label,age,sex', 4), st.text(max_size=60)))
def test_a_long_csv_of_anything(events, outcomes):
  with tempfile.TemporaryDirectory() as folder:
    a, b = pathlib.Path(folder, 'e.csv'), pathlib.Path(folder, 'o.csv')
    a.write_bytes(events.encode('utf8', 'surrogatepass'))
    b.write_bytes(outcomes.encode('utf8', 'surrogatepass'))
    refused_or_sound(lambda: long_csv.load(a, b))


@given(st.data())
def test_a_long_csv_with_damaged_bytes(data):
  with tempfile.TemporaryDirectory() as folder:
    paths = []
    for name, text in (('e.csv', GOOD_EVENTS), ('o.csv', GOOD_OUTCOMES)):
      raw = bytearray(text.encode())
      for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
      paths.append(pathlib.Path(folder, name))
      paths[-1].write_bytes(raw)
    refused_or_sound(lambda: long_csv.load(*paths))


@given(st.data())
def test_a_packed_long_csv_with_damaged_bytes(data):
  with tempfile.TemporaryDirectory() as folder:
    raw = bytearray(gzip.compress(GOOD_EVENTS.encode('latin-1'), mtime=0))
    for _ in range(data.draw(st.integers(0, 3))):
      raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    events, outcomes = pathlib.Path(folder, 'e.csv.gz'), pathlib.Path(folder, 'o.csv')
    events.write_bytes(bytes(raw[:data.draw(st.integers(0, len(raw)))]))
    outcomes.write_text(GOOD_OUTCOMES)
    refused_or_sound(lambda: long_csv.load(events, outcomes))
    assert re.fullmatch(r'( at byte \d+.*)?', damage.where(events, 'utf8'))


@given(rows('patient,time,feature,value,unit', 5).map(lambda text: text.replace(',', ';').replace('.', ',')))
def test_a_long_csv_with_decimal_commas(events):
  with tempfile.TemporaryDirectory() as folder:
    a, b = pathlib.Path(folder, 'e.csv'), pathlib.Path(folder, 'o.csv')
    a.write_bytes(events.encode('utf8', 'surrogatepass'))
    b.write_text(GOOD_OUTCOMES.replace(',', ';'))
    refused_or_sound(lambda: long_csv.load(a, b, reading=long_csv.Reading('utf8', ';', ',')))


@given(st.one_of(rows('Time,Parameter,Value', 3), st.text(max_size=80)),
       st.one_of(rows('RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death', 6), st.text(max_size=60)))
def test_a_stay_of_anything(stay, outcomes):
  with tempfile.TemporaryDirectory() as folder:
    stays, labels = pathlib.Path(folder, 'set-a'), pathlib.Path(folder, 'Outcomes-a.txt')
    stays.mkdir()
    (stays / '132539.txt').write_bytes(stay.encode('utf8', 'surrogatepass'))
    (stays / '132540.txt').write_text('Time,Parameter,Value\n00:00,RecordID,132540\n00:00,Age,50\n00:07,HR,80\n')
    labels.write_bytes(outcomes.encode('utf8', 'surrogatepass'))
    refused_or_sound(lambda: physionet2012.load(stays, labels))
