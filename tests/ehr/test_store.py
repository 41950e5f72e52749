from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from eagrl_jax.ehr import store
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.records import Cohort, Truth
from eagrl_jax.types import EagrlError

SPECS = (FeatureSpec('lactate', 'mmol/L', 0.5, 2.0, 0, 50, True, 1, aliases=('Lac', '乳酸'), sentinels=(-1.0,)),
         FeatureSpec('ventilated', kind='ordinal', levels=((0.0, 'no'), (1.0, 'yes'))),
         FeatureSpec('temperature', 'degC', accepted_units=(('degF', 5 / 9, -160 / 9),)))


def make(truth: bool) -> Cohort:
  rng = np.random.default_rng(0)
  n, events = 7, 40
  patient = np.sort(rng.integers(0, n, events)).astype(np.int32)
  hour = rng.uniform(0, 48, events).astype(np.float32)
  hour = hour[np.lexsort((hour, patient))]
  return Cohort(
      'toy', 'readmission', 'patients — any', FeatureTable(SPECS), np.array([f'pat-{9 - i}é' for i in range(n)]),
      np.append(rng.uniform(20, 90, n - 1), np.nan).astype(np.float32), rng.integers(-1, 2, n).astype(np.int8),
      rng.integers(0, 2, n).astype(np.int8), patient, hour, rng.integers(0, 2, events).astype(np.int16),
      rng.normal(size=events).astype(np.float32), (('read', 9, 'patients'), ('kept', 7, 'patients')),
      Truth(rng.dirichlet(np.ones(3), n).astype(np.float32), rng.uniform(size=n).astype(np.float32)) if truth else None)


@pytest.mark.parametrize('truth', [False, True])
def test_round_trip_is_exact(tmp_path, truth):
  cohort = make(truth)
  store.save(make(not truth), tmp_path / 'c')  # what stood there before leaves no trace
  store.save(cohort, tmp_path / 'c')
  again = store.load(tmp_path / 'c')
  for field in dataclasses.fields(Cohort):
    a, b = getattr(again, field.name), getattr(cohort, field.name)
    if isinstance(b, np.ndarray):
      np.testing.assert_array_equal(a, b, strict=True)
    elif field.name == 'features':
      assert a.specs == b.specs
    elif field.name != 'truth':
      assert a == b
  assert again.censor is None and 'censor' not in pq.read_schema(tmp_path / 'c' / 'events.parquet').names
  assert (again.truth is None) == (not truth)
  if truth:
    np.testing.assert_array_equal(again.truth.salience, cohort.truth.salience, strict=True)
    np.testing.assert_array_equal(again.truth.risk, cohort.truth.risk, strict=True)


def test_events_are_written_some_at_a_time(tmp_path, monkeypatch):
  cohort = make(False)
  store.save(cohort, tmp_path / 'whole')
  monkeypatch.setattr(store, '_ROWS', 16)
  store.save(cohort, tmp_path / 'parts')
  whole, parts = (pq.ParquetFile(tmp_path / name / 'events.parquet') for name in ('whole', 'parts'))
  assert (whole.num_row_groups, parts.num_row_groups) == (1, 3) and parts.read().equals(whole.read())
  assert store.fingerprint(store.load(tmp_path / 'parts')) == store.fingerprint(cohort)


def test_values_that_are_limits_keep_their_sign(tmp_path):
  cohort = make(False)
  signs = np.random.default_rng(1).integers(-1, 2, len(cohort.value)).astype(np.int8)
  limits = dataclasses.replace(cohort, censor=signs)
  store.save(limits, tmp_path / 'limits')
  np.testing.assert_array_equal(store.load(tmp_path / 'limits').censor, signs, strict=True)
  for name, none in (('exact', None), ('zeros', np.zeros_like(signs))):  # the bytes of a cohort without any
    store.save(dataclasses.replace(cohort, censor=none), tmp_path / name)
    assert store.load(tmp_path / name).censor is None
  same = [(tmp_path / name / 'events.parquet').read_bytes() for name in ('exact', 'zeros')]
  assert same[0] == same[1]
  assert len({store.fingerprint(c) for c in (cohort, limits, dataclasses.replace(cohort, censor=-signs))}) == 3
  table = pq.read_table(tmp_path / 'limits' / 'events.parquet')
  pq.write_table(table.drop_columns('censor'), tmp_path / 'limits' / 'events.parquet')
  with pytest.raises(EagrlError, match='not those its manifest describes'):
    store.load(tmp_path / 'limits')


def test_tables_carry_meds_names_and_units(tmp_path):
  cohort = make(True)
  store.save(cohort, tmp_path)
  events = pq.read_table(tmp_path / 'events.parquet').to_pylist()
  i = 11
  assert events[i] == {
      'subject_id': cohort.subject_id[cohort.patient[i]], 'time': cohort.hour[i],
      'code': SPECS[cohort.feature[i]].name, 'numeric_value': cohort.value[i], 'unit': SPECS[cohort.feature[i]].unit}
  manifest = json.loads((tmp_path / 'manifest.json').read_text())
  assert (manifest['patients'], manifest['events'], manifest['positives']) == (7, 40, int(cohort.label.sum()))


def test_fingerprint_sees_every_part():
  cohort = make(True)
  seen = {store.fingerprint(cohort)}
  for field in ('age', 'sex', 'label', 'patient', 'hour', 'feature', 'value'):
    changed = getattr(cohort, field).copy()
    changed[0] += 1
    seen.add(store.fingerprint(dataclasses.replace(cohort, **{field: changed})))
  seen.add(store.fingerprint(dataclasses.replace(cohort, truth=None)))
  seen.add(store.fingerprint(dataclasses.replace(cohort, task='mortality')))
  seen.add(store.fingerprint(dataclasses.replace(cohort, features=FeatureTable(SPECS[::-1]))))
  assert len(seen) == 11


def test_damage_is_noticed(tmp_path):
  store.save(make(False), tmp_path / 'c')
  with pytest.raises(EagrlError, match='missing, unfinished or damaged'):
    store.load(tmp_path / 'absent')
  labels = tmp_path / 'c' / 'labels.parquet'
  table = pq.read_table(labels)
  pq.write_table(table.take(list(range(table.num_rows))[::-1]), labels)
  with pytest.raises(EagrlError, match='not those its manifest describes'):
    store.load(tmp_path / 'c')
  labels.write_bytes(labels.read_bytes()[:100])
  with pytest.raises(EagrlError, match='damaged'):
    store.load(tmp_path / 'c')


@pytest.mark.parametrize(('text', 'message'), [
    ('- {name: a, reflow: 1}', "unknown field 'reflow'; did you mean 'ref_low'"),
    ('- {name: a, ref_low: 3, ref_high: 1}', 'ref_low is above ref_high'),
    ('- {name: a, ref_low: x}', "'a': ref_low has the wrong type"),
    ('- {name: a, aliases: b}', "'a': aliases has the wrong type"),
    ('- {name: a, rescale: [[0, 1, 100]]}', "'a': an entry of rescale must be .from, to, scale, offset."),
    ('- {name: a, accepted_units: [mg/dL, 2, 0]}', 'an entry of accepted_units must be'),
    ('- {name: a, accepted_units: [[mg/dL, 1, 0], [g/L, 0, 0]]}', "'a': a scale of accepted_units is 0, which turns"),
    ('- {name: a, rescale: [[0, 1, -0.0, 37]]}', "'a': a scale of rescale is 0, which turns every value into the off"),
    ('- {name: a, levels: [[1, yes]]}', 'an entry of levels must be .value, word.'),
    ('- {unit: a}', 'entries that each have a name'), ('a: 1', 'must be a list'), ('', 'must be a list'),
    ('- {name: "a, b"}', 'answers use as marks'), ('- {name: a, kind: x}', 'numeric or ordinal'),
    ('- [a', 'not YAML or JSON, see line'), ('- {name: a}\n- {name: A}', 'belongs to two features')])
def test_a_bad_feature_file_is_one_line(tmp_path, text, message):
  (tmp_path / 'f.yaml').write_text(text)
  with pytest.raises(EagrlError, match=message) as caught:
    store.read_features(tmp_path / 'f.yaml')
  assert '\n' not in str(caught.value)


def test_feature_files_in_yaml_and_json(tmp_path):
  (tmp_path / 'f.json').write_text(json.dumps(FeatureTable(SPECS).to_json()))
  assert store.read_features(tmp_path / 'f.json').specs == SPECS
  (tmp_path / 'f.yaml').write_text('- {name: lactate, ref_low: 0.5, ref_high: 2, accepted_units: [[mg/dL, 0.111, 0]]}')
  (spec,) = store.read_features(tmp_path / 'f.yaml')
  assert (spec.ref_low, spec.accepted_units) == (0.5, (('mg/dL', 0.111, 0),))
