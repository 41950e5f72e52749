"""The 25 bad inputs of the data layer's specification, one test each: refused with counts and without values (E),
put aside with a reason and counted (W), or repaired and counted (F)."""

from __future__ import annotations

import dataclasses
import gzip

import mimic4_fixture
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import test_meds
import test_physionet2012
import test_prepare
import test_tjh
import test_yaib
from test_long_csv import make
from test_validation import cohort_of

from eagrl_jax.ehr import normalise, splits, store, validation
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.prompt import PromptConfig, render
from eagrl_jax.ehr.records import to_visits
from eagrl_jax.ehr.sources import csv_text, long_csv, mimic4, outcomes_csv, physionet2012, tjh, wide_csv
from eagrl_jax.ehr.sources.bounded import Grid
from eagrl_jax.evaluation import bootstrap, metrics
from eagrl_jax.stages import foreign, lessons, prepare
from eagrl_jax.stages.encode import Encoder
from eagrl_jax.types import EagrlError

HEAD = 'patient,time,feature,value,unit\n'
OUTCOMES = 'patient,label\na,0\nb,1\n'
HOURLY = Grid(1.0, 'mean', 48.0)


def checked(events, *specs):
  """A validated cohort of (patient, hour, feature, value) rows, its counts and its rejects."""
  cohort = validation.validate(cohort_of(sorted(events), specs=specs))
  return cohort, {step: count for step, count, _ in cohort.attrition}, rejected(cohort)


def rejected(cohort):
  r = cohort.rejects
  return [] if r is None else sorted(zip(r.feature.tolist(), r.value.tolist(), r.reason.tolist()))


def spread(values, feature=0, start=0):
  return [(i % 3, start + i, feature, v) for i, v in enumerate(values)]


def read(tmp_path, events, outcomes=OUTCOMES, spec=None, **options):
  paths = make(tmp_path, HEAD + events if isinstance(events, str) else events, outcomes, spec or '')
  return long_csv.load(*paths, features=tmp_path / 'f.yaml' if spec else None, **options)


def steps_of(cohort):
  return {step: count for step, count, _ in cohort.attrition}


def refused(match, call, *secrets):
  with pytest.raises(EagrlError, match=match) as caught:
    call()
  assert '\n' not in str(caught.value) and not any(s in str(caught.value) for s in secrets)


def test_01_impossible_values_are_put_aside_and_counted(tmp_path):
  heart, pressure = FeatureSpec('heart rate', '/min', hard_high=300), FeatureSpec('SBP', 'mmHg', hard_low=20)
  cohort, count, aside = checked([(0, 0, 0, 1e7), (0, 1, 0, 80), (1, 0, 1, 0), (1, 1, 1, 120), (2, 0, 0, 70)],
                                 heart, pressure)
  assert sorted(cohort.value.tolist()) == [70, 80, 120]
  assert count['outside hard range: heart rate'] == count['outside hard range: SBP'] == 1
  assert aside == [('SBP', 0, 'outside hard range'), ('heart rate', 1e7, 'outside hard range')]
  store.save(cohort, tmp_path)
  assert pq.read_table(tmp_path / 'rejects.parquet').to_pylist() == [
      {'subject_id': 'p0', 'time': 0.0, 'code': 'heart rate', 'numeric_value': 1e7, 'unit': '/min',
       'reason': 'outside hard range'},
      {'subject_id': 'p1', 'time': 0.0, 'code': 'SBP', 'numeric_value': 0.0, 'unit': 'mmHg',
       'reason': 'outside hard range'}]
  assert len(store.load(tmp_path)) == 3


def test_02_fahrenheit_under_celsius_is_flagged_and_converted_only_by_a_rule():
  plain = FeatureSpec('temperature', 'degC', hard_low=25, hard_high=45, accepted_units=(('degF', 5 / 9, -160 / 9),))
  events = [*spread([37.0] * 40), (0, 60, 0, 98.6), (1, 60, 0, 300.0)]
  cohort, count, aside = checked(events, plain)
  assert set(cohort.value.tolist()) == {37} and count['outside hard range: temperature'] == 2
  assert count['of these possible in degF: temperature'] == 1
  assert [r for *_, r in aside] == ['outside hard range, possible in degF', 'outside hard range']
  rule = FeatureSpec('temperature', 'degC', hard_low=25, hard_high=45, rescale=((90, 110, 5 / 9, -160 / 9),))
  cohort, count, aside = checked(events, rule)
  np.testing.assert_allclose(cohort.value[cohort.hour == 60], 37, atol=1e-5)
  assert count['converted from 90 to 110: temperature'] == 1 and [v for _, v, _ in aside] == [300]


def test_03_inspired_oxygen_on_three_scales(tmp_path):
  oxygen = FeatureSpec('FiO2', '%', hard_low=21, hard_high=100, rescale=((0.21, 1, 100, 0),))
  cohort, count, aside = checked([*spread([50.0] * 40), (0, 50, 0, 0.5), (1, 50, 0, 0.21), (2, 50, 0, 1000)], oxygen)
  assert sorted(cohort.value[cohort.hour == 50].tolist()) == [21, 50] and (cohort.value[cohort.hour < 50] == 50).all()
  assert count['converted from 0.21 to 1: FiO2'] == 2 and aside == [('FiO2', 1000, 'outside hard range')]
  stay = mimic4.load(mimic4_fixture.write(tmp_path), task='mortality', index='icu', grid=HOURLY)
  assert stay.value[(stay.feature == stay.features.find('FiO2')) & (stay.hour < 10)].tolist() == [50]  # charted as 0.5


def test_04_a_declared_unit_is_converted_and_a_missing_one_is_not_guessed(tmp_path):
  spec = '- {name: glucose, unit: mg/dL, hard_low: 30, hard_high: 1500, accepted_units: [[mmol/L, 18.016, 0]]}\n'
  told = ''.join(f'a,{i},glucose,5,mmol/L\nb,{i},glucose,90,mg/dL\n' for i in range(15))
  cohort = read(tmp_path, told, spec=spec)
  assert sorted(set(np.round(cohort.value, 2).tolist())) == [90, pytest.approx(90.08)]
  untold = told.replace('mmol/L', '').replace('mg/dL', '')
  refused(r"15 of 30 values of 'glucose' are impossible in 'mg/dL' but possible in 'mmol/L'; give the unit",
          lambda: read(tmp_path, untold, spec=spec))


def test_05_a_column_of_two_specimens_needs_its_specimen():
  mixed = [*spread([7.4] * 54), *spread([5.5] * 6, start=54)]
  cohort, count, aside = checked([*mixed, *spread([1.0] * 3, feature=1)],
                                 FeatureSpec('pH', hard_low=6.8, hard_high=7.8), FeatureSpec('other'))
  assert set(cohort.feature.tolist()) == {1} and len(aside) == 60
  assert count['outside hard range: pH'] == 6 and count['not used until features give its specimen: pH'] == 54
  cohort, count, aside = checked(mixed, FeatureSpec('pH', hard_low=6.8, hard_high=7.8, specimen='blood'))
  assert len(cohort.value) == 54 and len(aside) == 6
  few = [*spread([7.4] * 58), *spread([5.5] * 2, start=58)]  # 3 %
  assert len(checked(few, FeatureSpec('pH', hard_low=6.8, hard_high=7.8))[0].value) == 58


def test_05_two_groups_of_values_within_one_range_need_it_too(tmp_path):
  rng = np.random.default_rng(0)
  milligrams, millimoles = rng.lognormal(4.8, 0.2, 60).tolist(), rng.lognormal(1.9, 0.2, 20).tolist()
  both = milligrams + millimoles

  def taken(values, spec, patients=80):
    cohort = cohort_of(sorted((i % patients, i, 0, v) for i, v in enumerate(values)), patients, specs=(spec,))
    return validation.validate(cohort)
  wide, told = FeatureSpec('glucose', hard_low=0, hard_high=2000), FeatureSpec('glucose', specimen='blood')
  cohort = taken(both, wide)
  assert len(cohort.value) == 0 and len(cohort.rejects) == 80
  assert steps_of(cohort)['two groups of values, not used until features give its specimen: glucose'] == 80
  assert set(cohort.rejects.reason) == {'two groups of values, its specimen is not given'}
  assert len(taken(both, told).value) == 80
  # One group; too few others (12 of 272); hardly a gap; an indicator; an assay's limit beside values.
  for values in (milligrams, rng.lognormal(4.8, 0.2, 260).tolist() + millimoles[:12],
                 [*np.linspace(0, 10, 40), *np.linspace(15, 25, 40)], [0.0, 1.0] * 30, milligrams + [9000.0] * 20):
    assert len(taken(values, FeatureSpec('x'), len(values)).value) == len(values)
  # Two patients, each with a level of its own.
  assert len(taken([v for pair in zip(millimoles, milligrams) for v in pair], wide, patients=2).value) == 40


def test_06_comparators_marks_and_decimal_commas(tmp_path):
  entries = ['<0.05', '>21', '12*', 'Hemolyzed', '3']
  rows = ''.join(f'a,{i},x,{v},\n' for i, v in enumerate(entries)) + 'b,0,x,"1,5",\n'
  cohort = read(tmp_path, rows + 'b,1,x,2,\n')
  np.testing.assert_allclose(sorted(cohort.value), [0.05, 2, 3, 21])
  assert steps_of(cohort)['assay limit written as < or >'] == 2 and steps_of(cohort)['text'] == 3
  assert [r for *_, r in rejected(cohort)] == ['text'] * 3 and np.isnan(cohort.rejects.value).all()
  comma = HEAD.replace(',', ';') + 'a;0;x;<0,05;\na;1;x;1.500;\nb;0,5;x;1,5;\n'
  cohort = long_csv.load(*make(tmp_path, comma, OUTCOMES.replace(',', ';')),
                         reading=long_csv.Reading('utf8', ';', ','))
  np.testing.assert_allclose(sorted(cohort.value), [0.05, 1.5])
  assert steps_of(cohort)['text'] == 1


def test_06_the_side_of_a_limit_is_kept_to_the_prompt_and_the_answer(tmp_path):
  spec = '- {name: x, unit: mg/dL, decimals: 0, accepted_units: [[inverse, -1, 0]]}\n'
  rows = 'a,0,x,<5,mg/dL\na,1,x,7,mg/dL\na,24,x,<5,mg/dL\na,25,x,<3,mg/dL\na,48,x,> 21,mg/dL\n'
  rows += 'b,0,x,<-6,inverse\nb,24,x,4,mg/dL\nb,24,x,<4,mg/dL\nb,48,x,<8,mg/dL\nb,48,x,<8,mg/dL\n'
  cohort = read(tmp_path, rows, spec=spec)
  store.save(cohort, tmp_path / 'out')
  cohort = store.load(tmp_path / 'out')
  row = {name: i for i, name in enumerate(cohort.subject_id.tolist())}
  mine = cohort.patient == row['a']
  assert cohort.censor[mine].tolist() == [-1, 0, -1, -1, 1] and cohort.value[mine].tolist() == [5, 7, 5, 3, 21]
  assert cohort.censor[~mine].tolist() == [1, 0, -1] and cohort.value[~mine].tolist() == [6, 4, 8]
  # at hour 24 of b an exact value and a limit contradict each other, at hour 48 two limits are one
  assert steps_of(cohort)['conflicting values at one time, averaged'] == 1 == steps_of(cohort)['identical duplicate']
  lines = {}
  for aggregate in ('mean', 'last'):
    encoder = Encoder(cohort, to_visits(cohort, 24.0, 4, aggregate), None, PromptConfig(style='compact'), 32)
    lines[aggregate] = {who: encoder.prompt(i).text.splitlines()[1].strip() for who, i in row.items()}
  assert lines == {'mean': {'a': 'x ok 6 <4 >21', 'b': 'x ok >6 4 <8'},
                   'last': {'a': 'x ok 7 <3 >21', 'b': 'x ok >6 4 <8'}}
  own = encoder.values(row['a'])
  assert encoder.prompt(row['a'], values=np.where(own == 21, 22, own)).text.splitlines()[1] == ' x ok 7 <3 22'
  told = {who: lessons.exercises(encoder, i, encoder.values(i), np.random.default_rng(0), 1)[0].text
          for who, i in row.items()}
  assert ' x ok above 21, rising </Answer 1>' in told['a'] and ' x ok below 8, rising </Answer 1>' in told['b']


def test_06_so_in_a_wide_file_and_of_new_patients(tmp_path):
  (tmp_path / 'w.csv').write_text('patient,time,x,y\na,0,<5,1\nb,0,6,>2\n')
  (tmp_path / 'o.csv').write_text(OUTCOMES)
  cohort = wide_csv.load(tmp_path / 'w.csv', tmp_path / 'o.csv')
  marked = lambda c: {(str(c.subject_id[p]), c.features[int(f)].name, float(v)): int(s) for p, f, v, s in zip(
      c.patient, c.feature, c.value, c.censor) if s}
  assert marked(cohort) == {('a', 'x', 5): -1, ('b', 'y', 2): 1}
  run = FeatureTable((FeatureSpec('y', accepted_units=(('inverse', -1.0, 0.0),)), FeatureSpec('x')))
  new, _ = foreign.read_unlabelled('wide_csv', str(tmp_path / 'w.csv'), '', run, columns=long_csv.Columns(),
                                   sex_codes=None, encoding='utf8', delimiter=',', task='mortality', setting='')
  assert marked(new) == marked(cohort)
  turned = FeatureTable(tuple(dataclasses.replace(s, unit='inverse' if s.name == 'y' else '') for s in cohort.features))
  mapped, _ = foreign.remap(dataclasses.replace(cohort, features=turned), run)
  assert marked(mapped) == {('a', 'x', 5): -1, ('b', 'y', -2): -1}
  exact = cohort.take(np.flatnonzero(cohort.subject_id == 'a')).pick(np.array([1]))
  assert validation.validate(exact).censor is None  # no part of the bytes where nothing is a limit


def test_06_so_where_values_are_converted_by_a_rule_or_made_a_sum():
  turned = FeatureSpec('x', rescale=((10.0, 20.0, -1.0, 0.0),))
  cohort = cohort_of([(0, 0, 0, 15.0), (0, 1, 0, 30.0), (1, 0, 0, 2.0)], 2, specs=(turned,))
  cohort = validation.validate(dataclasses.replace(cohort, censor=np.array([1, 1, -1], np.int8)))
  assert cohort.value.tolist() == [-15, 30, 2] and cohort.censor.tolist() == [-1, 1, -1]
  cohort = cohort_of([(0, 0, f, v) for f, v in enumerate((14.0, 2.0, 6.0, 4.0))] + [(1, 0, 0, 15.0)], 2, specs=GCS)
  cohort = validation.validate(dataclasses.replace(cohort, censor=np.ones(5, np.int8)))
  assert cohort.value[0] == 12 and cohort.censor.tolist() == [0, 1, 1, 1, 1]
  wrong = dataclasses.replace(cohort, label=np.array([0, 1], np.int8), censor=np.full(5, 2, np.int8))
  refused('data.censor: 5 signs', lambda: validation.check(wrong))
  refused('data.censor: has 4 entries and needs 5', lambda: validation.check(
      dataclasses.replace(cohort, censor=np.ones(4, np.int8))))


def test_06_the_last_of_two_values_keeps_its_own_side(tmp_path):
  rows = 'a,0,x,5,\na,0,x,<5,\nb,0,x,<6,\nb,0,x,6,\n'
  cohort = read(tmp_path, rows, spec='- {name: x, repeats: last}\n')
  assert dict(zip(cohort.value.tolist(), cohort.censor.tolist())) == {5: -1, 6: 0}
  assert steps_of(cohort)['superseded by a later value of the same time'] == 2


def test_07_codes_for_missing_values():
  listed = FeatureSpec('x', sentinels=(-1.0, 999.0))
  cohort, count, aside = checked([*spread([5.0, 6.0, 7.0]), (0, 9, 0, -1), (1, 9, 0, 999)], listed)
  assert len(cohort.value) == 3 and count['code for missing: x'] == 2 == len(aside)
  cohort, count, aside = checked([*spread([5.0 + i % 4 for i in range(30)]), *spread([-999.0] * 3, start=40)],
                                 FeatureSpec('x'))
  assert cohort.value.min() == 5 and count['looks like a code for missing: x'] == 3
  assert aside == [('x', -999, 'looks like a code for missing')] * 3


@pytest.mark.parametrize(('codes', 'found', 'kept'), [
    ([-999.0] * 3, 3, 30), ([888.0] * 3, 3, 30), ([-3.5] * 3 , 3, 30), ([-99.0] * 3 + [-999.0] * 3, 6, 30),
    ([-99.0] * 3 + [9999.0] * 3, 6, 30), ([-999.0], 0, 31), ([250.0] * 3, 0, 33), ([9.0] * 3, 0, 33)])
def test_07_codes_that_nobody_listed(tmp_path, codes, found, kept):
  """Also before values are averaged; an assay's limit is not taken for one."""
  values = [5.0 + i % 4 / 4 for i in range(30)] + codes
  cohort, count, aside = checked(spread(values), FeatureSpec('x'))
  assert count.get('looks like a code for missing: x', 0) == found == len(aside) and len(cohort.value) == kept
  odd = count.get('frequent and far from all others, kept; is it a code for missing: x', 0)
  assert odd == (3 if codes[0] in (250, 9) else 0)
  events = [(1 + i % 2, i // 2, 'LAB//1', v) for i, v in enumerate(values)]
  labels = [(1, 24, True), (2, 24, False)]
  test_meds.make(tmp_path, events=events, labels=labels, spec='- {name: x, aliases: [LAB//1]}\n')
  cohort = test_meds.load(tmp_path, bin_hours=1000.0)
  assert steps_of(cohort).get('looks like a code for missing: x', 0) == found == len(rejected(cohort))
  if found:
    assert 5 <= cohort.value.min() and cohort.value.max() < 6


def test_08_a_constant_or_empty_feature_keeps_its_slot():
  cohort, *_ = checked([(p, h, 0, 4.0) for p in range(3) for h in range(3)]
                       + [(p, 0, 1, float(p)) for p in range(3)], *(FeatureSpec(n) for n in ('flat', 'varies', 'none')))
  visits = to_visits(cohort, 1.0, 4)
  statistics = normalise.fit(visits, np.arange(3), cohort.features, cohort.age)
  batch = normalise.apply(statistics, visits, cohort)
  assert statistics.flat == ('flat', 'none') and batch.values.shape[-1] == 3
  assert np.isfinite(batch.values).all() and np.abs(batch.values[..., [0, 2]]).max() == 0


def test_09_duplicates_are_counted_and_conflicts_averaged():
  cohort, count, _ = checked([(0, 1, 0, 2.0), (0, 1, 0, 2.0), (1, 1, 0, 2.0), (1, 1, 0, 4.0), (2, 0, 0, 1.0)],
                             FeatureSpec('x'))
  assert cohort.value.tolist() == [2, 3, 1]
  assert count['identical duplicate'] == 1 and count['conflicting values at one time, averaged'] == 1


def test_07_a_code_below_a_skewed_value_is_found_though_its_range_is_wide():
  creatinine = np.exp(np.linspace(-1.2, 2.2, 60)).round(2).tolist()
  for code in (-1.0, -9.0, -99.0):
    cohort, count, _ = checked(spread(creatinine + [code] * 9), FeatureSpec('x'))
    assert count['looks like a code for missing: x'] == 9 and len(cohort.value) == 60
  for kept in ([-1.0], [-0.5] * 9, [-1.0] * 9 + [-2.0] * 9 + [-1.5]):  # a single one, no code, and values below 0
    cohort, count, _ = checked(spread(creatinine + kept), FeatureSpec('x'))
    assert len(cohort.value) == 60 + len(kept)


def test_07_a_code_has_no_unit(tmp_path):
  spec = '- {name: glucose, unit: mmol/L, hard_low: 0.5, hard_high: 80, sentinels: [999]}\n'
  cohort = read(tmp_path, 'a,0,glucose,999,mg/dL\na,1,glucose,90.08,mg/dL\nb,0,glucose,6,mmol/L\n', spec=spec)
  assert sorted(round(float(v), 2) for v in cohort.value) == [5, 6]
  assert steps_of(cohort)['code for missing: glucose'] == 1
  events = [(1, 0, 'LAB//G//mg/dL', 999), (1, 1, 'LAB//G//mg/dL', 90.08), (2, 0, 'LAB//G//mmol/L', 6)]
  test_meds.make(tmp_path, events=events, labels=[(1, 24, True), (2, 24, False)],
                 spec=spec.replace('}', ', aliases: [LAB//G]}'))
  cohort = test_meds.load(tmp_path, bin_hours=1000.0)
  assert sorted(round(float(v), 2) for v in cohort.value) == [5, 6]
  assert steps_of(cohort)['code for missing: glucose'] == 1


def test_03_the_first_range_that_holds_converts_a_value(tmp_path):
  """Ranges that touch: 1 lies in both, and what the first made of it is not converted again."""
  spec = '- {name: x, repeats: %s, hard_low: 0, hard_high: 110, rescale: [[0, 1, 100, 0], [1, 10, 10, 0]]}\n'
  rows = 'a,0,x,50,\na,0,x,1,\na,1,x,0.1,\nb,0,x,5,\n'
  cohort = read(tmp_path, rows, spec=spec % 'last')
  assert sorted(np.round(cohort.value).tolist()) == [10, 50, 100]
  counted = steps_of(cohort)
  assert counted['converted from 0 to 1: x'] == 2 and counted['converted from 1 to 10: x'] == 1
  events = [(1, 0, 'x', 1.0), (1, 30, 'x', 0.1), (2, 0, 'x', 5.0)]
  test_meds.make(tmp_path, events=events, labels=[(1, 48, True), (2, 24, False)], spec=spec % 'mean')
  again = test_meds.load(tmp_path)
  assert sorted(np.round(again.value).tolist()) == [10, 50, 100]
  assert {k: steps_of(again)[k] for k in counted if k.startswith('converted')} == {
      k: v for k, v in counted.items() if k.startswith('converted')}


def test_09_an_impossible_value_corrects_nothing(tmp_path):
  """Impossible after the spec's own rule: 98.6 is 37 here, 4 and 999 are nothing."""
  spec = ('- {name: t, repeats: last, hard_low: 25, hard_high: 45, sentinels: [30], '
          'rescale: [[77, 113, 0.5555556, -17.777778]]}\n- {name: l, repeats: last, levels: [[1, a], [2, b]]}\n')
  rows = 'a,0,t,36,\na,0,t,4,\na,1,t,36.5,\na,1,t,98.6,\na,2,t,36.8,\na,2,t,30,\nb,0,l,1,\nb,0,l,7,\nb,1,t,999,\n'
  cohort = read(tmp_path, rows, spec=spec)
  kept = list(zip(cohort.feature.tolist(), np.round(cohort.value.astype(float), 1).tolist()))
  assert sorted(kept) == [(0, 36), (0, 36.8), (0, 37), (1, 1)]
  counted = steps_of(cohort)
  assert counted['superseded by a later value of the same time'] == 1 and counted['outside hard range: t'] == 2
  assert counted['code for missing: t'] == 1 and counted['no level of the feature: l'] == 1


def test_09_a_corrected_value_takes_the_place_of_the_first(tmp_path):
  spec = '- {name: x, repeats: %s}\n- {name: y}\n'
  head = 'patient,time,feature,value,available\n'
  # x at hour 1: 4.1 became available last, of 9.9 nobody says when; at hour 2 the file's order decides; y has no rule
  rows = head + 'a,1,x,4.1,3\na,1,x,8.2,2\na,1,x,9.9,\na,2,x,5,\na,2,x,6,\nb,1,x,7,9\nb,1,x,7,9\na,1,y,2,\na,1,y,4,\n'
  cohort = read(tmp_path, rows.encode(), spec=spec % 'last')
  kept = sorted(zip(cohort.subject_id[cohort.patient].tolist(), cohort.hour.tolist(), cohort.feature.tolist(),
                    np.round(cohort.value.astype(float), 2).tolist()))
  assert kept == [('a', 0, 0, 4.1), ('a', 0, 1, 3), ('a', 1, 0, 6), ('b', 0, 0, 7)]
  assert steps_of(cohort)['superseded by a later value of the same time'] == 3
  assert [(v, r) for n, v, r in rejected(cohort) if n == 'x'] == [
      (pytest.approx(v), 'superseded by a later value of the same time') for v in (5, 8.2, 9.9)]
  known, _ = foreign.read_unlabelled('csv', str(tmp_path / 'e.csv'), '', store.read_features(tmp_path / 'f.yaml'),
                                     columns=long_csv.Columns(), sex_codes=None, encoding='utf8', delimiter=',',
                                     task='mortality', setting='')
  assert known.value.max() == 7 and steps_of(known)['superseded by a later value of the same time'] == 3
  assert round(float(read(tmp_path, rows.encode(), spec=spec % 'mean').value.max()), 2) == 7.4  # as without the rule
  for wrong, match in (('first', 'repeats must be mean or last'),):
    refused(match, lambda: read(tmp_path, rows.encode(), spec=spec % wrong))


def test_09_so_in_a_wide_file_and_not_where_there_is_no_order(tmp_path):
  (tmp_path / 'w.csv').write_text('patient,time,x\na,1,8.2\na,1,4.1\nb,1,7\n')
  (tmp_path / 'o.csv').write_text(OUTCOMES)
  (tmp_path / 'f.yaml').write_text('- {name: x, repeats: last}\n')
  cohort = wide_csv.load(tmp_path / 'w.csv', tmp_path / 'o.csv', features=tmp_path / 'f.yaml')
  assert sorted(np.round(cohort.value.astype(float), 2).tolist()) == [4.1, 7]
  test_meds.make(tmp_path, spec=test_meds.SPEC.replace('hard_low: 10', 'hard_low: 10, repeats: last'))
  refused("'heart rate': repeats last needs the order of a csv", lambda: test_meds.load(tmp_path))


def test_09_codes_that_training_found_are_codes_of_one_patient_too(tmp_path):
  """A file of a single new patient shows no pattern: what the run's cohort found is in its feature table."""
  rows = ''.join(f'{"ab"[i % 2]},{i},x,{-1 if i % 5 == 0 else 150 + i},\n' for i in range(60))
  cohort = read(tmp_path, rows)
  assert steps_of(cohort)['looks like a code for missing: x'] == 12 and -1 not in cohort.value
  assert cohort.features[0].sentinels == (-1,)
  store.save(cohort, tmp_path / 'c')
  (tmp_path / 'n.csv').write_text(HEAD + 'z,0,x,-1,\nz,1,x,151,\n')
  new, _ = foreign.read_unlabelled('csv', str(tmp_path / 'n.csv'), '', store.load(tmp_path / 'c').features,
                                   columns=long_csv.Columns(), sex_codes=None, encoding='utf8', delimiter=',',
                                   task='mortality', setting='x')
  assert new.value.tolist() == [151] and steps_of(new)['code for missing: x'] == 1


def test_10_unsorted_times_mixed_zones_and_days(tmp_path):
  cohort = read(tmp_path, 'a,5,x,2,\na,1,x,1,\nb,0,x,3,\n')
  assert cohort.hour[cohort.patient == cohort.subject_id.tolist().index('a')].tolist() == [0, 4]
  refused('data.columns.time: times are written in several ways', lambda: read(
      tmp_path, 'a,2020-01-01T00:00+01:00,x,1,\nb,2020-01-01T00:00+02:00,x,1,\n'), '2020')
  for rows, resolution in (('a,2020-01-01,x,1,\na,2020-01-03,x,1,\nb,2020-01-01,x,2,\n', 'day'),
                           ('a,2020-01-01T00:00,x,1,\na,2020-01-03T07:00,x,1,\nb,2020-01-01T00:00,x,2,\n', 'hour')):
    store.save(read(tmp_path, rows), tmp_path / 'out')
    assert f'"time_resolution": "{resolution}"' in (tmp_path / 'out' / 'manifest.json').read_text()


def test_10_dates_that_a_spreadsheet_has_turned_into_days(tmp_path):
  rows = 'a,45413.5,x,1,\na,45415,x,2,\nb,45000,x,3,\n'
  refused("data.columns.time: all times lie between 20000 and 60000 hours, a patient's within 60, as the days do by",
          lambda: read(tmp_path, rows), '454')
  wide = 'patient,time,x\na,45413.5,1\na,45415,2\nb,45000,3\n'
  refused('data.columns.time: all times', lambda: wide_csv.load(*make(tmp_path, wide, OUTCOMES)), '454')
  assert read(tmp_path, rows + 'b,0,x,3,\n').hour.max() == 45000  # one clock of hours for all, from its hour 0
  assert read(tmp_path, 'a,30000,x,1,\na,30090,x,2,\nb,41000,x,3,\nb,41061,x,3,\n').hour.max() == 90  # and from another


def test_11_events_after_the_outcome_are_left_out_and_many_are_an_error(tmp_path):
  outcomes = 'patient,label,until\na,0,300\nb,1,\n'
  rows = ''.join(f'{p},{h},x,{h % 7},\n' for p in 'ab' for h in range(100))
  cohort = read(tmp_path, rows + 'a,301,x,5,\n', outcomes)
  assert steps_of(cohort)['after the outcome or prediction'] == 1 and cohort.hour.max() == 99
  assert rejected(cohort) == [('x', 5, 'after the outcome or prediction')]
  refused('data.columns.until: 3 of 203 rows lie after it', lambda: read(
      tmp_path, rows + 'a,301,x,5,\na,302,x,5,\na,303,x,5,\n', outcomes), '301')
  late = tjh.load(test_tjh.write(tmp_path / 'late.xlsx'))
  assert steps_of(late)['after discharge'] == 2  # the published workbook has 71 of 6,120: counted, not refused


def test_11_so_in_tables_that_count_from_admission(tmp_path):
  def stays(early):
    time = [*range(100), *range(100 - early), *[-3] * early]
    return test_yaib.load(test_yaib.make(tmp_path, dyn={
        'stay_id': [7] * 100 + [8] * 100, 'time': time, 'hr': [80.0] * 200, 'crea': [1.0] * 200, 'sbp': ...}))
  cohort = stays(2)
  assert steps_of(cohort)['before admission'] == 2 and cohort.hour.min() == 0
  refused('3 of 200 rows of dyn.parquet lie before admission; count', lambda: stays(3), '-3')


def test_11_so_in_a_set_of_48_hours(tmp_path):
  def stays(late):
    hours = [*(f'{i // 3:02}:{20 * (i % 3):02},HR,80' for i in range(1, 140 - late)), *['59:30,HR,77'] * late]
    known = test_physionet2012.stay(11, *hours, icu=1), test_physionet2012.stay(14, *hours, icu=1)
    return physionet2012.load(test_physionet2012.make(tmp_path, dict(zip((11, 14), known)), (
        'RecordID,Length_of_stay,In-hospital_death\n11,5,0\n14,5,1\n')))
  cohort = stays(1)
  assert steps_of(cohort)['after 48 hours'] == 2 and cohort.hour.max() < 48 and 77 not in cohort.value
  refused('4 of 290 rows lie after the 48 hours of the set', lambda: stays(2), '59')


def test_12_a_value_stored_after_the_prediction_is_not_used(tmp_path):
  head = 'patient,time,feature,value,available\n'
  rows = ''.join(f'{p},{h},x,1,{h + 2}\n' for p in 'ab' for h in range(100))
  cohort = read(tmp_path, (head + rows).encode(), 'patient,label,until\na,0,100\nb,1,500\n')
  mine = cohort.patient == cohort.subject_id.tolist().index('a')
  assert cohort.hour[mine].max() == 98 and cohort.hour[~mine].max() == 99
  assert steps_of(cohort)['available only after the outcome or prediction'] == 1 == len(cohort.rejects)
  stay = mimic4.load(mimic4_fixture.write(tmp_path), task='mortality', index='icu', grid=HOURLY)
  assert steps_of(stay)['labevents: charted in the window, stored after it'] == 1 and 300 not in stay.value


@pytest.mark.parametrize('kind', ['csv', 'wide_csv'])
def test_11_who_ends_within_the_window_is_counted_and_said(tmp_path, kind):
  """It may be when a prediction is made; the end of a stay tells by the length of a record that a patient has died."""
  head, cell = ('patient,time,x\n', '') if kind == 'wide_csv' else ('patient,time,feature,value\n', 'x,')
  rows = ''.join(f'{p},{100 + h},{cell}{h % 7}\n' for p, last in (('a', 60), ('b', 20), ('c', 24)) for h in range(last))
  paths = make(tmp_path, head + rows, 'patient,label,until\na,0,160\nb,1,120\nc,1,124\n')
  load = {'csv': long_csv.load, 'wide_csv': wide_csv.load}[kind]
  early = 'data.columns.until lies within the window'
  for window, found in ((48.0, 2), (24.0, 1), (20.0, 0), (0.0, 0)):
    cohort = load(*paths, window_hours=window)
    assert len(cohort) == 3 and steps_of(cohort).get(early, 0) == found
    line = f'data.columns.until: of {found} patients it lies within data.window_hours={window:g}; where it is the end'
    assert prepare.ends_early(cohort, window).startswith(line if found else '')
    assert bool(prepare.ends_early(cohort, window)) == bool(found)


@pytest.mark.parametrize('kind', ['csv', 'wide_csv'])
def test_12_a_value_known_only_after_the_window_is_not_used(tmp_path, kind):
  """Measured in hour 20, known in hour 60: a prediction after 24 hours, with outcomes or without, does not have it."""
  head, cell = ('patient,time,x,available\n', '{v}') if kind == 'wide_csv' else (
      'patient,time,feature,value,available\n', 'x,{v}')
  rows = ''.join(f'{p},{h},{cell.format(v=300 if h == 20 else h)},{60 if h == 20 else h + 1}\n'
                 for p in 'ab' for h in range(100, 150) for h in [h - 100])
  files = make(tmp_path, (head + rows).encode(), 'patient,label\na,0\nb,1\n', '')
  load = {'csv': long_csv.load, 'wide_csv': wide_csv.load}[kind]
  step = 'available only after the outcome or prediction'
  whole, day = load(*files), load(*files, window_hours=24.0)
  assert 300 in whole.value and step not in steps_of(whole)
  # Of each patient the one of hour 20, and the one of hour 23 that is known in hour 24 is.
  assert 300 not in day.value and 23 in day.value and steps_of(day)[step] == 2 == len(day.rejects)
  new, _ = foreign.read_unlabelled(kind, str(files[0]), '', day.features, columns=long_csv.Columns(), sex_codes=None,
                                   encoding='utf8', delimiter=',', task='mortality', setting='x', window_hours=24.0)
  assert 300 not in new.value and 23 in new.value and steps_of(new)[step] == 2


def test_13_without_an_outcome_a_patient_is_counted_and_left_out(tmp_path):
  cohort = read(tmp_path, 'a,0,x,1,\nb,0,x,1,\nc,0,x,1,\nd,0,x,1,\n', OUTCOMES + 'c,\n')
  assert sorted(cohort.subject_id) == ['a', 'b']
  assert steps_of(cohort)['outcome left empty'] == 1 and steps_of(cohort)['without outcome'] == 2


def test_14_contradictory_outcomes_are_never_averaged(tmp_path):
  refused('a patient has two different outcomes', lambda: read(tmp_path, 'a,0,x,1,\nb,0,x,1,\n', OUTCOMES + 'a,1\n'))
  hospital = mimic4_fixture.write(tmp_path)
  patients = hospital / 'hosp' / 'patients.csv.gz'  # the sixth patient: alive on discharge, dead on the first day
  text = gzip.decompress(patients.read_bytes()).decode().replace('6,M,56,2148,2011 - 2013,',
                                                                 f'6,M,56,2148,2011 - 2013,{mimic4_fixture.day(0)}')
  patients.write_bytes(gzip.compress(text.encode()))
  stays = mimic4.load(hospital, task='mortality', index='icu', grid=HOURLY)
  assert '6' not in stays.subject_id and steps_of(stays)['alive on discharge yet dead before: contradictory'] == 1


@pytest.mark.parametrize('index', ['icu', 'hospital'])
def test_14_nobody_is_readmitted_after_death(tmp_path, monkeypatch, index):
  def stays(folder, task='readmission'):
    hospital = mimic4_fixture.write(tmp_path / folder)
    return mimic4.load(hospital, task=task, index=index, grid=Grid(24.0, 'last'))
  step = 'admitted again after the death: contradictory'
  assert steps_of(stays('before'))[step] == 0
  monkeypatch.setitem(mimic4_fixture.DOD, 3, 100)  # in hospital again at hour 300
  cohort = stays('dead')
  assert '3' not in cohort.subject_id and steps_of(cohort)[step] == 1
  assert '3' in stays('mortality', 'mortality').subject_id  # that he left this stay alive is in no doubt
  monkeypatch.setitem(mimic4_fixture.DOD, 3, 300)  # on the day of the admission: a date stands for the day's end
  cohort = stays('day')
  assert cohort.label[cohort.subject_id == '3'] == 1 and steps_of(cohort)[step] == 0
  # Dead on the ward at hour 190, and a minute later admitted as a donor, with no time of death (mimic-code issue 1194).
  donor = [*mimic4_fixture.ADMISSIONS['admissions'], (5, 52, 190.02, 200, None, 0)]
  monkeypatch.setitem(mimic4_fixture.ADMISSIONS, 'admissions', donor)
  cohort = stays('donor')
  assert '5' not in cohort.subject_id and steps_of(cohort)[step] == (index == 'icu')


def test_15_who_died_cannot_be_readmitted(tmp_path):
  stays = mimic4.load(mimic4_fixture.write(tmp_path), task='readmission', index='hospital', grid=HOURLY)
  assert not {'1', '5'} & set(stays.subject_id) and steps_of(stays)['died before leaving the hospital'] == 2


def test_16_one_patient_in_two_splits_or_under_two_ids(tmp_path):
  pq.write_table(pa.table({'subject_id': ['a', 'b', 'a'], 'split': ['train', 'tuning', 'held_out']}),
                 tmp_path / 's.parquet')
  refused('1 patients stand twice', lambda: splits.load(tmp_path / 's.parquet', np.array(['a', 'b'])))
  refused('1 patients have two ids', lambda: read(tmp_path, '007,0,x,1,\n7,0,x,1,\n', 'patient,label\n7,0\n'), '007')


def test_17_age_is_computed_capped_and_possible(tmp_path):
  def hospital(folder, anchor_age):
    mimic4_fixture.write(tmp_path / folder)
    path = tmp_path / folder / 'hosp' / 'patients.csv.gz'
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b'6,M,56,', b'6,M,%d,' % anchor_age)))
    return mimic4.load(tmp_path / folder, task='mortality', index='icu', grid=HOURLY)
  stays = hospital('old', 91)
  age = dict(zip(stays.subject_id.tolist(), stays.age.tolist()))
  assert age['4'] == 54 + 2 and age['6'] == 90 and steps_of(stays)['older than 89 years, given 90'] == 1
  refused('1 patients have an age outside 0 to 120', lambda: hospital('shifted', 300), '300')


def test_17_above_89_years_there_is_one_group(tmp_path):
  outcomes = 'patient,label,age\na,0,89\nb,1,97\nc,0,90\nd,1,\n'
  cohort = read(tmp_path, ''.join(f'{p},0,x,1,\n' for p in 'abcd'), outcomes)
  age = dict(zip(cohort.subject_id.tolist(), cohort.age.tolist()))
  assert (age['a'], age['b'], age['c']) == (89, 90, 90) and np.isnan(age['d'])
  assert steps_of(cohort)['older than 89 years, given 90'] == 1
  text = lambda years, style: render(cohort.features, np.ones((1, 1)), np.zeros(1), years, 1, setting='patients',
                                     config=PromptConfig(style=style)).text
  for style in ('compact', 'full'):
    assert 'Age: >89' in text(90.0, style) and 'Age: 89' in text(89.0, style)
  refused('1 ages are outside 0 to 120 years', lambda: read(
      tmp_path, 'a,0,x,1,\nb,0,x,1,\n', outcomes.replace('97', '300')), '300')


def test_18_sex_needs_a_mapping(tmp_path):
  rows, outcomes = 'a,0,x,1,\nb,0,x,1,\n', 'patient,label,sex\na,0,1\nb,1,2\n'
  refused("2 entries of 'sex' have an unknown code", lambda: read(tmp_path, rows, outcomes))
  cohort = read(tmp_path, rows, outcomes, sex_codes=outcomes_csv.parse_sex_codes('1=f,2=m'))
  assert dict(zip(cohort.subject_id.tolist(), cohort.sex.tolist())) == {'a': 0, 'b': 1}


def test_18_an_outcome_that_hangs_on_the_sex_is_a_warning(tmp_path, caplog):
  def said(male, female, codes='1=m,2=f'):
    people = [(sex, i < positives) for sex, (positives, n) in (('1', male), ('2', female)) for i in range(n)]
    rows = ''.join(f'k{i},0,x,{i % 7}\n' for i in range(len(people)))
    config = test_prepare.csv(tmp_path)
    (tmp_path / 'e.csv').write_text('patient,time,feature,value\n' + rows.replace(',x,', ',NA,13'))
    (tmp_path / 'o.csv').write_text('patient,label,sex\n' + ''.join(
        f'k{i},{y:d},{sex if codes else "mf"[int(sex) - 1]}\n' for i, (sex, y) in enumerate(people)))
    config.data.sex_codes = codes
    caplog.clear()
    with caplog.at_level('WARNING', logger='absl'):
      test_prepare.prepared(config, tmp_path)
    return [r.getMessage() for r in caplog.records]
  assert said((40, 100), (5, 100)) == ['40 of 100 male and 5 of 100 female patients have the outcome, which chance '
                                       'does not explain; check data.sex_codes']
  assert said((40, 100), (5, 100), '2=m,1=f')[0].startswith('5 of 100 male and 40 of 100 female')
  assert said((40, 100), (0, 100)) and not said((40, 100), (5, 100), '')  # without a mapping nothing is swapped by one
  assert said((120, 300), (59, 300)) and not said((120, 300), (60, 300))  # twice as frequent and no more
  assert not said((8, 20), (2, 20))  # what chance may do


PRESSURES = tuple(FeatureSpec(n, 'mmHg') for n in ('SBP', 'DBP', 'MAP'))
GCS = tuple(FeatureSpec(n) for n in ('GCS total', 'GCS eye opening', 'GCS motor response', 'GCS verbal response'))
OXYGEN = (FeatureSpec('PaO2', 'mmHg'), FeatureSpec('SpO2', '%'))
in_units = lambda specs, *units: tuple(dataclasses.replace(s, unit=u) for s, u in zip(specs, units))


@pytest.mark.parametrize(('specs', 'values', 'kept', 'reason'), [
    (PRESSURES, (120, 80, 93), (120, 80, 93), ''), (PRESSURES, (110, 70, 175), (110, 70), 'mean pressure not between'),
    (PRESSURES, (60, 90, 75), (75,), 'systolic below diastolic'), (PRESSURES, (120, 80, 79), (120, 80, 79), ''),
    (PRESSURES, (120, None, 175), (120, 175), ''),
    (GCS, (15, 4, 6, 5), (15, 4, 6, 5), ''), (GCS, (15, 2, 6, 4), (12, 2, 6, 4), 'GCS total is not the sum'),
    (GCS, (15, 2, 6, None), (15, 2, 6), ''),
    ((FeatureSpec('Glasgow coma scale'), *GCS[1:]), (15, 2, 6, 4), (12, 2, 6, 4), 'GCS total is not the sum'),
    (OXYGEN, (95, 97), (95, 97), ''), (OXYGEN, (300, 50), (), 'exclude each other'),
    (in_units(PRESSURES, 'mm[Hg]', 'mm Hg', 'mm[Hg]'), (60, 90, 75), (75,), 'systolic below diastolic'),
    (in_units(PRESSURES, '', '', ''), (60, 90, 75), (75,), 'systolic below diastolic'),
    (in_units(PRESSURES, '', '', ''), (-0.5, 1.5, 3.0), (-0.5, 1.5, 3.0), ''),  # standardised
    (in_units(PRESSURES, '', 'mmHg', ''), (110, 70, 175), (110, 70), 'mean pressure not between'),
    (in_units(PRESSURES, 'kPa', 'mmHg', 'mmHg'), (15, 70, 90), (15, 70, 90), ''),
    (in_units(OXYGEN, 'mm[Hg]', '%'), (300, 50), (), 'exclude each other'),
    (in_units(OXYGEN, 'kPa', '%'), (10, 97), (10, 97), ''),
    (in_units(OXYGEN, '', '%'), (10, 97), (10, 97), '')])  # kPa, for all that is known
def test_19_values_that_contradict_each_other(specs, values, kept, reason):
  cohort, count, aside = checked([(0, 3, f, float(v)) for f, v in enumerate(values) if v is not None]
                                 + [(p, 9, 0, 100.0) for p in range(3)], *specs)
  now = cohort.hour == 3
  assert tuple(cohort.value[now].tolist()) == kept
  found = {r for *_, r in aside}
  assert all(r.startswith(reason) or reason in r for r in found) and bool(found) == bool(reason)
  assert (sum(n for step, n in count.items() if reason and reason in step) >= 1) == bool(reason)


def test_19_so_before_averaging_over_a_visit(tmp_path):
  pressures = [(6, 12, 220179, 60), (6, 12, 220180, 90), (6, 13, 220179, 110), (6, 13, 220180, 70),
               (6, 13, 220181, 175)]
  chart = [(s, h, item, str(v), str(v), 'mmHg') for s, h, item, v in pressures]
  stays = mimic4.load(mimic4_fixture.write(tmp_path, chart=chart), task='mortality', index='icu', grid=HOURLY)
  assert sorted(v for n, v, r in rejected(stays) if 'pressure' in r) == [60, 90, 175]
  names = {stays.features[int(f)].name: v for f, v in zip(stays.feature, stays.value)}
  assert names['systolic blood pressure'] == 110 and names['diastolic blood pressure'] == 70
  assert 'mean blood pressure' not in names


def test_20_other_words_for_a_level_and_unknown_ones(tmp_path):
  spec = '- {name: eye opening, kind: ordinal, levels: [[1, None], [2, To Pain], [4, Spontaneously]]}\n'
  rows = 'a,0,eye opening,2 To pain,\na,1,eye opening,to-pain,\na,2,eye opening,Winks,\nb,0,eye opening,4,\n'
  cohort = read(tmp_path, rows, spec=spec.replace('None', '"No response"'))
  assert sorted(cohort.value.tolist()) == [2, 2, 4]
  assert steps_of(cohort)['level of an ordinal feature written as a word'] == 2 and steps_of(cohort)['text'] == 0
  assert steps_of(cohort)['a word that is no level of the feature: eye opening'] == 1
  assert [r for *_, r in rejected(cohort)] == ['a word that is no level of the feature']


def test_20_a_number_that_is_no_level(tmp_path):
  spec = '- {name: eye opening, kind: ordinal, levels: [[1, none], [2, to pain], [4, spontaneous]]}\n'
  rows = 'a,0,eye opening,4,\na,1,eye opening,0,\na,2,eye opening,3,\nb,0,eye opening,1,\n'  # 0: not assessed
  cohort = read(tmp_path, rows, spec=spec)
  assert sorted(cohort.value.tolist()) == [1, 4] and steps_of(cohort)['no level of the feature: eye opening'] == 2
  assert [(v, r) for _, v, r in rejected(cohort)] == [(0, 'no level of the feature'), (3, 'no level of the feature')]
  events = [(1, 5, 'LAB//1', 0), (1, 6, 'LAB//1', 4), (2, 3, 'LAB//1', 2), (2, 4, 'LAB//1', 1)]
  test_meds.make(tmp_path, events=events, spec=spec.replace('kind:', 'aliases: [LAB//1], kind:'))
  cohort = test_meds.load(tmp_path, bin_hours=24.0)
  assert sorted(cohort.value.tolist()) == [1.5, 4]  # a mean of a visit may lie between levels
  assert steps_of(cohort)['no level of the feature: eye opening'] == 1
  assert rejected(cohort) == [('eye opening', 0, 'no level of the feature')]


def test_21_renamed_columns_and_features(tmp_path):
  spec = '- {name: hs-CRP, aliases: [High sensitivity c-reactive protein, IL-1α]}\n'
  rows = 'a,0,high  sensitivity C-Reactive Protein ,1,\nb,0,IL-1a,2,\n'
  assert sorted(read(tmp_path, rows, spec=spec).value.tolist()) == [1, 2]
  refused("unknown feature 'hs-CPR'; did you mean 'hs-CRP'", lambda: read(tmp_path, 'a,0,hs-CPR,1,\n', spec=spec))
  refused("no column 'value'; the nearest header is 'values'",
          lambda: read(tmp_path, HEAD.replace('value', 'values').encode() + b'a,0,x,1,\n'))


def test_21_a_file_without_a_header_line_shows_nothing_of_its_first_patient(tmp_path):
  """Names, dates, ids and the outcome would stand where headers stand."""
  none = 'holds none of the columns .* in its first line; (does it have a header line with these names|check its)'
  secret = 'Meier', '4711', '1', '140', '1969-07-20'
  events, outcome = 'Meier,1969-07-20,sodium,140,mmol/L\n', 'Meier,1,4711\n'
  refused(f'^data.path: e.csv {none}', lambda: read(tmp_path, events.encode()), *secret)
  refused(f'^data.outcomes: o.csv {none}', lambda: read(tmp_path, 'a,0,x,1,\n', outcome), *secret)
  wide = make(tmp_path, 'Meier,1969-07-20,140,4711\nHuber,1969-07-21,141,4712\n', OUTCOMES)
  refused(f'^data.path: e.csv {none}', lambda: wide_csv.load(*wide), *secret)
  workbook = test_tjh.write(tmp_path / 'tjh.xlsx', header=['Meier', '1969-07-20', 4711, 1, 140])
  refused(f'^data.path: the workbook {none}', lambda: tjh.load(workbook), *secret)
  stays = test_physionet2012.make(tmp_path, outcomes='11,4711,1,140\n')
  refused(f'^data.outcomes: Outcomes-a.txt {none}', lambda: physionet2012.load(stays), '4711', '140', "'1")


def test_21_another_delimiter_or_other_names_are_what_to_look_for(tmp_path):
  fix = 'in its first line; check its header line, --config.data.delimiter and --config.data.columns$'
  (tmp_path / 'o.csv').write_text(OUTCOMES)
  for rows in ('patient;time;feature;value\na;0;x;1\n', 'subject_id,charttime,itemid,valuenum\na,0,x,1\n'):
    (tmp_path / 'e.csv').write_text(rows)
    refused(f"e.csv holds none of the columns 'patient', 'time', 'feature', 'value' {fix}",
            lambda: long_csv.load(tmp_path / 'e.csv', tmp_path / 'o.csv'))


def test_21_more_names_than_a_cohort_can_number(tmp_path):
  rows = ''.join(f'{"ab"[i % 2]},0,x{i},1,\n' for i in range(32_768))
  refused('data.columns.feature: 32768 different names, where 32767 features are the most; check which column',
          lambda: read(tmp_path, rows))


def test_22_empty_cohorts_and_single_classes(tmp_path):
  refused('holds no row', lambda: read(tmp_path, ''))
  refused('all 2 patients are negative', lambda: read(tmp_path, 'a,0,x,1,\nb,0,x,1,\n', 'patient,label\na,0\nb,0\n'))
  label, rows = np.array([0, 1, 0, 1, 0, 0]), np.arange(6)
  refused('the test part has 0 positives of 2', lambda: splits.check(
      splits.Splits(rows[:2], rows[2:4], rows[4:]), label, 'data.splits'))
  rare = bootstrap.bootstrap(np.eye(9)[0], np.linspace(1, 0, 9), 50)['auroc']
  assert rare['redrawn'] > 5 and (rare['n_resamples'], rare['skipped'], rare['mean']) == (50, 0, 1)
  assert np.isnan(metrics.auroc([0, 0], [.1, .2])) and 'only one class' in metrics.undefined(np.zeros(2, int))


def test_23_very_long_single_and_empty_records(tmp_path):
  rows = ''.join(f'a,{h},x,{h % 9},\n' for h in range(5000)) + 'b,0,x,1,\nc,0,x,gone,\n'
  cohort = read(tmp_path, rows, OUTCOMES + 'c,1\n')
  assert sorted(cohort.subject_id) == ['a', 'b'] and steps_of(cohort)['without any observation'] == 1
  visits = to_visits(cohort, 24.0, 4)
  i = cohort.subject_id.tolist().index('a')
  assert visits.values.shape[:2] == (2, 4) and visits.valid.sum(1).tolist() == ([4, 1] if i == 0 else [1, 4])
  assert visits.hours[i].tolist() == [206 * 24, 207 * 24, 208 * 24, 209 * 24]


@pytest.mark.parametrize('source', [long_csv.load, wide_csv.load])
def test_24_a_damaged_file_is_named_with_the_byte(tmp_path, monkeypatch, source):
  if source is long_csv.load:
    rng = np.random.default_rng(0)
    plain = (HEAD + ''.join(f'a,{i},x,{rng.integers(10**9)},\n' for i in range(3000)) + 'b,0,x,1,\n').encode()
  else:
    plain = b'patient,time,x\n' + b''.join(b'a,%d,%d\n' % (i, i * i) for i in range(3000)) + b'b,0,1\n'
  (tmp_path / 'o.csv').write_text(OUTCOMES)

  def load(name, content):
    (tmp_path / name).write_bytes(content)
    return source(tmp_path / name, tmp_path / 'o.csv')
  packed = gzip.compress(plain, mtime=0)
  assert len(load('whole.csv.gz', packed + gzip.compress(b'b,9,x,7,\n' if source is long_csv.load else b'b,9,7\n'))
             .value) == 3002
  cut = packed[:len(packed) // 2]
  refused(f'cut.csv.gz is not a CSV .* at byte {len(cut)} of the packed file', lambda: load('cut.csv.gz', cut))
  spoilt = bytearray(packed)
  spoilt[len(packed) // 2:len(packed) // 2 + 64] = bytes(64)
  refused(r'spoilt.csv.gz is not a CSV .* at byte \d+ of the packed file', lambda: load('spoilt.csv.gz', bytes(spoilt)))
  at = plain.index(b'a,9,')
  latin = plain[:at] + b'\xfc' + plain[at:]
  refused(f'latin.csv is not a CSV .* at byte {at};', lambda: load('latin.csv', latin))
  assert len(load('bom.csv', b'\xef\xbb\xbf' + plain).value) == 3001
  if source is long_csv.load:
    monkeypatch.setattr(csv_text, 'BLOCK', 100)  # so that blocks end within quotes
    assert load('newline.csv', plain.replace(b',x,', b',"x\ny",')).features.names == ('x y',)


def test_24_so_in_a_packed_table_of_mimic(tmp_path):
  hospital = mimic4_fixture.write(tmp_path)
  path = hospital / 'icu' / 'chartevents.csv.gz'
  path.write_bytes(path.read_bytes()[:-200])
  refused(f'chartevents.csv.* is damaged .* at byte {path.stat().st_size} of the packed file',
          lambda: mimic4.load(hospital, task='mortality', index='icu', grid=HOURLY))


def test_25_files_of_other_data_and_values_that_are_no_numbers(tmp_path):
  cohort, *_ = checked([(p, 0, 0, float(p)) for p in range(3)], FeatureSpec('x'))
  store.save(cohort, tmp_path)
  events = pq.read_table(tmp_path / 'events.parquet')
  pq.write_table(events.set_column(events.schema.get_field_index('numeric_value'), 'numeric_value',
                                   pa.array([9.0, 9, 9], pa.float32())), tmp_path / 'events.parquet')
  refused('are not those its manifest describes', lambda: store.load(tmp_path))
  visits = to_visits(cohort, 1.0, 2)
  other, *_ = checked([(p, 0, 0, float(p)) for p in range(3)], FeatureSpec('y'))
  statistics = normalise.fit(visits, np.arange(3), other.features, cohort.age)
  refused('fitted on other features', lambda: normalise.apply(statistics, visits, cohort))
  refused('data.value: 1 values are NaN or infinite', lambda: validation.check(
      cohort_of([(p, 0, 0, [1.0, np.nan, 2.0][p]) for p in range(3)], specs=(FeatureSpec('x'),))))


