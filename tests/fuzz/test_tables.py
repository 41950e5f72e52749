"""CSV files that are nearly right, long, wide and of new patients, how they are said to be written, feature specs."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from material import JSON, csv, damaged, files, mostly, only_our_error, refused_or_sound

from eagrl_jax.ehr import splits, store
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.sources import long_csv, outcomes_csv, wide_csv
from eagrl_jax.ehr.sources.csv_text import Reading
from eagrl_jax.stages import foreign

SPECS = json.dumps([
    {'name': 'lactate', 'unit': 'mmol/L', 'accepted_units': [['mg/dL', 0.111, 0]], 'hard_high': 30},
    {'name': 'GCS', 'kind': 'ordinal', 'levels': [[1, 'none'], [4, 'spontaneous']], 'sentinels': [-1]},
    {'name': 'FiO2', 'unit': '%', 'rescale': [[0.2, 1, 100, 0]]}, {'name': 'SBP', 'unit': 'mmHg'},
    {'name': 'DBP', 'unit': 'mmHg'}, {'name': 'MAP', 'unit': 'mmHg'}, {'name': 'PaO2', 'unit': 'mmHg'},
    {'name': 'SpO2', 'unit': '%'}])
RUN = FeatureTable.from_json(json.loads(SPECS))
WHO, WHEN = mostly('a', 'b', 'c'), mostly('0', '1', '2.5', '7', '48')
WHAT = mostly('lactate', 'GCS', 'FiO2', 'SBP', 'DBP', 'MAP', 'PaO2', 'SpO2')
VALUE = mostly('1', '2.5', '80', '120', '0.4', '<3', 'none', '4', '')
OUTCOMES = csv(4, patient=WHO, label=mostly('0', '1'), age=mostly('50', '90', ''), sex=mostly('m', 'f', ''),
               until=mostly('48', '100', ''))
GOOD_OUTCOMES = 'patient,label,age,sex\na,0,50,m\nb,1,60,f\nc,1,,\n'
TEXT = st.text(max_size=60)


@given(csv(patient=WHO, time=WHEN, feature=WHAT, value=VALUE, unit=mostly('mmol/L', 'mg/dL', '%', 'mmHg', ''),
           available=mostly('1', '50', '')), st.one_of(st.just(GOOD_OUTCOMES), OUTCOMES), st.booleans())
def test_a_long_csv_that_is_nearly_right(events, outcomes, specs):
  with files(e__csv=events, o__csv=outcomes, f__json=SPECS) as at:
    refused_or_sound(lambda: long_csv.load(at / 'e.csv', at / 'o.csv', features=at / 'f.json' if specs else None))


HEADERS = ('lactate', 'GCS', 'FiO2', 'SBP', 'DBP', 'MAP', 'PaO2', 'SpO2', 'Lactate', 'label', 'feature', 'é', '"q"', '')


@st.composite
def wide(draw, separator=','):
  header = ['patient', 'time', *draw(st.lists(st.one_of(st.sampled_from(HEADERS[:8]), st.sampled_from(HEADERS)),
                                              min_size=1, max_size=4))]
  if draw(st.integers(0, 9)) == 0:
    header = draw(st.permutations(header))[draw(st.integers(0, 1)):]
  line = st.tuples(mostly('a', 'b', 'c', 'unit'), WHEN, *[VALUE] * (len(header) - 2))
  return ''.join(separator.join(row) + '\n' for row in [header, *draw(st.lists(line, max_size=6))])


@given(st.one_of(wide(), wide(), TEXT), st.one_of(st.just(GOOD_OUTCOMES), OUTCOMES), st.booleans())
def test_a_wide_csv_of_anything(table, outcomes, specs):
  with files(w__csv=table, o__csv=outcomes, f__json=SPECS) as at:
    refused_or_sound(lambda: wide_csv.load(at / 'w.csv', at / 'o.csv', features=at / 'f.json' if specs else None))


@given(st.data())
def test_a_wide_csv_with_damaged_bytes(data):
  with files(w__csv=damaged(data, b'patient,time,x,y\nunit,,mmol/L,%\na,0,1.5,\nb,1,"2",7\n'),
             o__csv=GOOD_OUTCOMES) as at:
    refused_or_sound(lambda: wide_csv.load(at / 'w.csv', at / 'o.csv'))


@given(st.one_of(csv(patient=WHO, time=WHEN, feature=WHAT, value=VALUE, unit=mostly('mmol/L', '')), wide(), TEXT),
       st.one_of(csv(4, patient=WHO, age=mostly('50', ''), sex=mostly('m', '')), TEXT),
       st.sampled_from(foreign.CSV), st.booleans())
def test_new_patients_of_anything(events, statics, kind, known):
  with files(e__csv=events, s__csv=statics) as at:
    refused_or_sound(lambda: foreign.read_unlabelled(
        kind, str(at / 'e.csv'), str(at / 's.csv') if known else '', RUN, columns=long_csv.Columns(), sex_codes=None,
        encoding='utf8', delimiter=',', task='mortality', setting='patients')[0])


FLAG = st.one_of(st.text(max_size=4), st.sampled_from([
    'utf8', 'utf-16', 'latin-1', 'cp1252', 'gb18030', 'utf-7', 'idna', 'punycode', 'rot13', 'hex', 'zip', 'base64',
    'unicode_escape', 'undefined', 'mbcs', 'utf8\n', ',', ';', '\t', '|', '"', '\n', ',,', 'é', '.', '']))


@given(FLAG, FLAG, st.sampled_from([',', '.']), st.sampled_from(['utf8', 'utf-16', 'latin-1']), st.booleans())
def test_a_csv_said_to_be_written_in_any_way(encoding, delimiter, decimal, truth, melted):
  mark = delimiter if len(delimiter) == 1 else ','
  text = f'patient{mark}time{mark}feature{mark}value\na{mark}0{mark}é{mark}1,5\nb{mark}1{mark}é{mark}2.5\n'
  with files(e__csv=text.encode(truth, 'replace'), o__csv=GOOD_OUTCOMES.replace(',', mark).encode(truth,
                                                                                                  'replace')) as at:
    load = wide_csv.load if melted else long_csv.load
    refused_or_sound(lambda: load(at / 'e.csv', at / 'o.csv', reading=Reading(encoding, delimiter, decimal)))


@given(st.one_of(st.text(max_size=20), st.text('=,0123456789mfunkow \u0661', max_size=20)))
def test_codes_and_protocols_of_anything(text):
  only_our_error(lambda: outcomes_csv.parse_sex_codes(text))
  only_our_error(lambda: splits.parse_protocol(text))
  only_our_error(lambda: splits.parse_protocol('10fold:' + text))


FIELDS = st.sampled_from([*FeatureSpec.__dataclass_fields__, 'nmae'])
ENTRY = st.one_of(JSON, st.sampled_from([[['mg/dL', 1, 0]], [[1, 'low']], ['x'], [1], [[0.2, 1, 100, 0]], 'ordinal',
                                         [[True, 'x']], -5, 10**9, float('nan')]))


@given(st.data())
def test_feature_specs_of_anything(data):
  rows = json.loads(SPECS)
  for _ in range(data.draw(st.integers(0, 3))):
    data.draw(st.sampled_from(rows))[data.draw(FIELDS)] = data.draw(ENTRY)
  events = 'patient,time,feature,value\na,0,lactate,1\nb,1,lactate,2\nb,1,GCS,none\na,3,FiO2,0.5\n'
  with files(f__json=json.dumps(data.draw(st.one_of(*[st.just(rows)] * 6, JSON))), e__csv=events,
             o__csv=GOOD_OUTCOMES) as at:
    refused_or_sound(lambda: long_csv.load(at / 'e.csv', at / 'o.csv', features=at / 'f.json'))


YAML = st.lists(st.sampled_from([
    '- ', 'name: ', 'x', '\n', '{', '}', '[', ']', ': ', ', ', '&a ', '*a', '!!int ', '!!python/x ', '2020-13-45',
    '1e5', '~', '"', "'", '#', '? ', '| ', '\t', '  ', '%YAML 9.9\n', '---\n', '<<: ', '!!timestamp ', '!!binary ',
    '0x', '1:99:99', '=', '\x00']), max_size=30)


@given(st.one_of(YAML.map(''.join), TEXT, st.sampled_from([1, 50, 1000]).map(lambda n: '[' * n)))
def test_a_features_file_of_any_text(text):
  with files(f__yaml=text) as at:
    only_our_error(lambda: store.read_features(at / 'f.yaml'))
