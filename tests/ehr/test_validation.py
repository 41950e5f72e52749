from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from eagrl_jax.ehr import validation
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable, canonical
from eagrl_jax.ehr.records import Cohort
from eagrl_jax.types import EagrlError

SPECS = (
    FeatureSpec('lactate', 'mmol/L', hard_low=0, hard_high=50),
    FeatureSpec('temperature', 'degC', hard_low=25, hard_high=45, accepted_units=(('degF', 5 / 9, -160 / 9),)),
    FeatureSpec('height', 'cm', sentinels=(-1.0,)),
    FeatureSpec('score'),
)


def cohort_of(events: list[tuple[int, float, int, float]], n: int = 3, specs=SPECS, **change) -> Cohort:
  patient, hour, feature, value = (np.array(x) for x in zip(*events))
  cohort = Cohort(
      name='toy', task='mortality', setting='', features=FeatureTable(specs),
      subject_id=np.array([f'p{i}' for i in range(n)]), age=np.full(n, 50, np.float32), sex=np.zeros(n, np.int8),
      label=(np.arange(n) % 2).astype(np.int8), patient=patient.astype(np.int32), hour=hour.astype(np.float32),
      feature=feature.astype(np.int16), value=value.astype(np.float32), attrition=())
  return dataclasses.replace(cohort, **change)


GOOD = [(0, 0, 0, 1.5), (0, 2, 1, 37.0), (1, 0, 0, 4.0), (2, 1, 2, 170.0)]


def test_numbers_out_of_text():
  texts = ['1.5', ' -2e3 ', '<0.05', '>=21', '≤ 4', '+7', '.5', '1,5', '12*', 'hemolysed', '', None, 'inf', 'nan', '3.']
  found = validation.parse_numbers(texts)
  np.testing.assert_array_equal(
      found.value, [1.5, -2000, 0.05, 21, 4, 7, 0.5] + [np.nan] * 7 + [3])
  assert (found.censored, found.text) == (3, 6)  # text: 1,5  12*  hemolysed  ''  inf  nan
  assert found.censor.tolist() == [0, 0, -1, 1, -1] + [0] * 10
  assert validation.parse_numbers([]).value.shape == (0,)


def test_impossible_values_become_missing_and_are_counted():
  events = [*GOOD, (0, 3, 0, 50.5), (0, 3, 0, -0.1), (1, 1, 2, -1.0), (1, 2, 3, -1.0), (1, 3, 0, np.inf), (1, 4, 0, 50)]
  found = validation.validate(cohort_of(sorted(events)))
  assert set(found.attrition) == {
      ('not finite', 1, 'values'), ('code for missing: height', 1, 'values'),
      ('outside hard range: lactate', 2, 'values'), ('kept', 3, 'patients'), ('kept', 6, 'values')}
  kept = list(zip(found.patient.tolist(), found.hour.tolist(), found.feature.tolist(), found.value.tolist()))
  assert kept == [*sorted(GOOD)[:3], (1, 2, 3, -1), (1, 4, 0, 50), (2, 1, 2, 170)]
  validation.check(found)


def test_levels_are_no_codes_for_missing():
  levels = tuple((float(v), f'level {v}') for v in range(-5, 5))
  spec = FeatureSpec('RASS', kind='ordinal', levels=levels, hard_low=-5, hard_high=4)
  values = [0.0] * 30 + [1.0] * 10 + [-4.0] * 5
  found = validation.validate(cohort_of([(i % 3, i, 0, v) for i, v in enumerate(values)], specs=(spec,)))
  assert len(found.value) == 45


@pytest.mark.parametrize('values', [[96.0] * 10 + [97.0] * 9 + [99.0] * 3, [50.0] * 20 + [2e3] * 3,
                                    [4.0, 5.0, 6.0, 7.0, 8.0] * 20 + [900.0, 910.0, 920.0, 930.0, 940.0] * 20])
def test_a_new_patients_values_do_not_depend_on_who_else_is_in_the_file(values):
  spec = FeatureSpec('x', hard_low=0, hard_high=1e3)
  events = [(i, 0, 0, v) for i, v in enumerate(values)]
  everyone = cohort_of(events, n=len(values), specs=(spec,))
  judged = validation.validate(everyone, judge_features=False)
  alone = [validation.validate(everyone.take(np.array([i])), judge_features=False).value.tolist()
           for i in range(len(values))]
  assert [v for one in alone for v in one] == judged.value.tolist() == [v for v in values if v <= 1e3]
  assert len(validation.validate(everyone).value) < len(judged.value)  # of a cohort to learn from they are judged


def test_duplicates_merge_and_conflicts_average():
  events = [(0, 1, 0, 2.0), (0, 1, 0, 2.0), (0, 1, 0, 5.0), (1, 1, 0, 3.0), (1, 1, 0, 3.0), (1, 1, 1, 37.0),
            (2, 1, 0, 1.0)]
  found = validation.validate(cohort_of(events))
  assert found.value.tolist() == [3.5, 3.0, 37.0, 1.0]  # (2 + 5) / 2: equal values count once
  assert ('identical duplicate', 2, 'values') in found.attrition
  assert ('conflicting values at one time, averaged', 1, 'values') in found.attrition


def test_patients_left_without_a_value_are_dropped():
  found = validation.validate(cohort_of([(0, 0, 0, 1.0), (1, 0, 0, 99.0), (2, 0, 0, 2.0)]))
  assert found.subject_id.tolist() == ['p0', 'p2'] and found.patient.tolist() == [0, 1]
  assert ('without any observation', 1, 'patients') in found.attrition


def test_a_wrong_unit_is_named_and_never_converted():
  fahrenheit = [(i % 3, i, 1, 98.0 + i / 10) for i in range(10)] + [(i % 3, i + 20, 1, 37.0) for i in range(20)]
  with pytest.raises(EagrlError, match=r"10 of 30 values of 'temperature' are impossible in 'degC' .* 'degF'"):
    validation.validate(cohort_of(sorted(fahrenheit)))
  with pytest.raises(EagrlError, match="20 of 20 values of 'lactate' lie outside its hard range"):
    validation.validate(cohort_of(sorted((i % 3, i, 0, 900.0) for i in range(20))))


def test_an_unlisted_missing_code_is_put_aside():
  events = sorted([(i % 3, i, 3, 5.0 + i % 4) for i in range(30)] + [(i % 3, 50 + i, 3, 999.0) for i in range(5)])
  found = validation.validate(cohort_of(events))
  assert ('looks like a code for missing: score', 5, 'values') in found.attrition
  assert len(found.value) == 30 and (found.rejects.value == 999).sum() == 5
  near = sorted([(i % 3, i, 3, 900.0 + 7 * i) for i in range(30)] + [(0, 50, 3, 999.0), (1, 50, 3, 999.0)])
  assert not [step for step, *_ in validation.validate(cohort_of(near)).attrition if 'code' in step]


@pytest.mark.parametrize(('change', 'message'), [
    ({'label': np.zeros(3, np.int8)}, r'data.label: all 3 patients are negative'),
    ({'label': np.ones(3, np.int8)}, r'data.label: all 3 patients are positive'),
    ({'label': np.array([0, 1, 2], np.int8)}, r'data.label: 1 labels are neither'),
    ({'subject_id': np.array(['a', 'a', 'b'])}, r'data.subject_id: 1 ids are repeated'),
    ({'age': np.array([1, 130, 5], np.float32)}, r'data.age: 1 ages'),
    ({'sex': np.array([0, 1, 2], np.int8)}, r'data.sex: 1 codes'),
    ({'value': np.array([1, np.nan, 1, 1], np.float32)}, r'data.value: 1 values are NaN'),
    ({'hour': np.array([2, 0, 0, 1], np.float32)}, r'data.hour: 1 events are out of order'),
    ({'hour': np.array([-2, 0, 0, 1], np.float32)}, r'data.hour: 1 times are negative'),
    ({'hour': np.array([0, np.nan, 0, 1], np.float32)}, r'data.hour: 1 times are negative or NaN'),
    ({'patient': np.array([0, 0, 2, 1], np.int32)}, r'data.hour: 1 events are out of order'),
    ({'patient': np.array([0, 0, 1, 3], np.int32)}, r'data.patient: 1 row numbers'),
    ({'patient': np.array([0, 0, 1, 1], np.int32)}, r'data: 1 patients have no event'),
    ({'feature': np.array([0, 1, 0, 4], np.int16)}, r'data.feature: 1 ids'),
    ({'age': np.ones(2, np.float32)}, r'data.age: has 2 entries and needs 3'),
])
def test_check_names_the_field(change, message):
  validation.check(cohort_of(GOOD))
  with pytest.raises(EagrlError, match=message) as caught:
    validation.check(cohort_of(GOOD, **change))
  assert '\n' not in str(caught.value)


def test_check_refuses_an_empty_cohort():
  with pytest.raises(EagrlError, match='the cohort is empty'):
    validation.check(validation.validate(cohort_of([(0, 0, 0, 99.0), (1, 0, 0, 99.0), (2, 0, 0, 99.0)])))


def test_names_in_any_script_stay_apart():
  assert canonical('白细胞计数') != canonical('血小板计数')
  assert canonical('Serum_Lactate (mmol)') == canonical('serum lactate mmol') == 'serumlactatemmol'
  assert canonical('IL-1β') == 'il1b' and canonical('eosinophils(%)') == 'eosinophils%'
