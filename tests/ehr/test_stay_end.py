"""When a stay ends is an outcome: it travels with the labels and reaches nothing that predicts."""

from __future__ import annotations

import ast
import dataclasses
import pathlib

import mimic4_fixture
import numpy as np
import pyarrow.parquet as pq
import pytest
import test_physionet2012
import test_tjh
from test_validation import GOOD, cohort_of

from eagrl_jax.ehr import normalise, store, validation
from eagrl_jax.ehr.prompt import PromptConfig
from eagrl_jax.ehr.records import to_visits
from eagrl_jax.ehr.sources import mimic4, physionet2012, synthetic, tjh
from eagrl_jax.ehr.sources.bounded import Grid
from eagrl_jax.evaluation import baselines
from eagrl_jax.stages.encode import Encoder
from eagrl_jax.types import EagrlError

PACKAGE = pathlib.Path(__file__).parents[2] / 'eagrl_jax'
MAY_READ = {'ehr/records.py', 'ehr/store.py', 'ehr/validation.py', 'ehr/sources/bounded_cohort.py',
            'ehr/sources/mimic4.py', 'ehr/sources/mimic4_stays.py', 'ehr/sources/physionet2012.py',
            'ehr/sources/tjh.py', 'stages/early.py',
            'stages/beside.py',  # the audit counts inputs behind it
            'stages/foreign.py'}  # the last takes it away from new patients
ENDS = np.array([30, np.nan, 77], np.float32)


def test_it_is_kept_with_the_labels(tmp_path):
  cohort = cohort_of(GOOD, stay_end=ENDS)
  store.save(cohort.take(np.array([2, 0])), tmp_path)
  assert pq.read_table(tmp_path / 'labels.parquet')['stay_end'].to_pylist() == [77, 30]
  np.testing.assert_array_equal(store.load(tmp_path).stay_end, [77, 30])
  np.testing.assert_array_equal(validation.validate(cohort_of(GOOD[:2] + GOOD[3:], stay_end=ENDS)).stay_end, [30, 77])


def test_where_it_is_not_known_a_cohort_is_as_before(tmp_path):
  plain, known = cohort_of(GOOD), cohort_of(GOOD, stay_end=ENDS)
  store.save(plain, tmp_path)
  assert 'stay_end' not in pq.read_table(tmp_path / 'labels.parquet').column_names
  assert store.load(tmp_path).stay_end is None
  assert store.fingerprint(plain) == (
      'f605713d49f43c7dba4d9791e9402c085fd5c1ecb116f5e1d9cf5d61d5e8ba40')
  assert store.fingerprint(known) != store.fingerprint(plain)
  assert store.fingerprint(known) != store.fingerprint(dataclasses.replace(known, stay_end=ENDS + 1))


@pytest.mark.parametrize('ends', [np.array([1, -1, 2.0]), np.array([1, np.inf, 2.0]), np.array([1.0])])
def test_an_impossible_end_is_refused(ends):
  with pytest.raises(EagrlError, match=r'data\.stay_end'):
    validation.check(cohort_of(GOOD, stay_end=ends))


@pytest.mark.parametrize('style', ['compact', 'full'])
def test_no_prompt_and_no_input_of_a_model_changes_with_it(style):
  seen = []
  for ends in (None, ENDS, np.array([123456, 7, 0], np.float32)):
    cohort = cohort_of(GOOD, stay_end=ends)
    visits = to_visits(cohort, 1.0, 4)
    statistics = normalise.fit(visits, np.arange(3), cohort.features, cohort.age)
    batch = normalise.apply(statistics, visits, cohort)
    encoder = Encoder(cohort, visits, None, PromptConfig(style=style), 1)
    table = baselines.summarise(visits.values, visits.valid, cohort.age, cohort.sex)
    seen.append(([encoder.prompt(i).text for i in range(3)],
                 [getattr(batch, f.name) for f in dataclasses.fields(batch)], table.x))
  for text, arrays, table in seen[1:]:
    assert text == seen[0][0]
    for a, b in zip([*arrays, table], [*seen[0][1], seen[0][2]]):
      np.testing.assert_array_equal(a, b)


def test_only_the_early_score_reads_it():
  readers = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob('*.py') for node in ast.walk(ast.parse(
      path.read_text())) if isinstance(node, ast.Attribute) and node.attr == 'stay_end'}
  assert {'ehr/records.py', 'stages/early.py'} <= readers <= MAY_READ


def ends(cohort):
  return {s: round(float(h), 3) for s, h in zip(cohort.subject_id.tolist(), cohort.stay_end)}


def test_of_tjh_it_is_the_discharge(tmp_path):
  path = test_tjh.write(tmp_path / 'tjh.xlsx')
  assert ends(tjh.load(path)) == {'7': 7 * 24, '202': 6 * 24}
  assert ends(tjh.load(path, keep_after_discharge=True))['203'] == 0  # nothing but a row of the day after
  rows = [[*r[:5], None, *r[6:]] if r[2] == 70 else r for r in test_tjh.ROWS]
  found = ends(tjh.load(test_tjh.write(tmp_path / 'unsaid.xlsx', rows)))
  assert np.isnan(found['202']) and found['7'] == 7 * 24


def test_of_the_challenge_it_is_the_length_of_stay(tmp_path):
  outcomes = test_physionet2012.OUTCOMES.replace('14,1,-1,3', '14,1,-1,-1')
  cohort = physionet2012.load(test_physionet2012.make(tmp_path, outcomes=outcomes))
  found = ends(cohort)
  assert (found['11'], found['12']) == (5 * 24, 8 * 24) and np.isnan(found['14'])  # -1: unknown
  (tmp_path / 'Outcomes-a.txt').write_text('RecordID,In-hospital_death\n11,0\n12,1\n13,0\n14,0\n')
  assert physionet2012.load(tmp_path / 'set-a.tar.xz').stay_end is None


@pytest.mark.parametrize(('window', 'origin'), [(48.0, 0), (0.0, 20.5)])  # hours count from the stay, or its midnight
def test_of_mimic_it_is_the_discharge_or_the_death_in_hospital(tmp_path, window, origin):
  folder = mimic4_fixture.write(tmp_path)
  found = ends(mimic4.load(folder, task='mortality', index='icu', grid=Grid(1.0, 'mean', window)))
  expected = {'1': 58, '2': 200, '4': 73, '5': 190, '6': 90}
  assert {s: found[s] - origin for s in expected} == expected


def test_a_readmission_is_not_decided_when_the_stay_ends(tmp_path):
  folder = mimic4_fixture.write(tmp_path)
  for index in ('icu', 'hospital'):
    assert mimic4.load(folder, task='readmission', index=index, grid=Grid(24.0, 'mean')).stay_end is None


def test_the_simulated_record_has_no_end():
  assert synthetic.generate(synthetic.SyntheticConfig(n=8), 0).stay_end is None
