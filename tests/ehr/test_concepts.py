"""Which features of two data sets are the same, and whose values arrive."""

import itertools

import pytest
from test_validation import cohort_of

from eagrl_jax.ehr import concepts
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.sources import (
    mimic4_features,
    physionet2012_features,
    synthetic_features,
    tjh_features,
    yaib_features,
)
from eagrl_jax.stages import foreign

TABLES = {'synthetic': synthetic_features.TABLE, 'tjh': tjh_features.FEATURES,
          'physionet2012': physionet2012_features.FEATURES, 'mimic4': mimic4_features.FEATURES,
          'yaib': yaib_features.FEATURES}
SOURCES = tuple(TABLES)
# What at least two measure, in the order of SOURCES; '' where one does not.
SHARED = (
    ('white cell count', 'white blood cell count', 'white blood cell count', '', 'white blood cell count'),
    ('', 'hematocrit', 'hematocrit', '', ''),
    ('platelets', 'platelet count', 'platelet count', '', 'platelet count'),
    ('ALT', 'ALT', 'ALT', '', 'ALT'),
    ('AST', 'AST', 'AST', '', 'AST'),
    ('', 'alkaline phosphatase', 'alkaline phosphatase', '', 'alkaline phosphatase'),
    ('albumin', 'albumin', 'albumin', '', 'albumin'),
    ('creatinine', 'creatinine', 'creatinine', '', 'creatinine'),
    ('sodium', 'sodium', 'sodium', '', 'sodium'),
    ('potassium', 'potassium', 'potassium', '', 'potassium'),
    ('bicarbonate', 'bicarbonate', 'bicarbonate', '', 'bicarbonate'),
    ('glucose', 'glucose', 'glucose', 'glucose', 'glucose'),
    ('bilirubin', 'total bilirubin', 'bilirubin', '', 'bilirubin'),
    ('', 'total cholesterol', 'cholesterol', '', ''),
    ('', 'cardiac troponin I', 'troponin I', '', ''),
    ('urea nitrogen', 'urea', 'blood urea nitrogen', '', 'blood urea nitrogen'),
    ('pH', 'blood pH', 'arterial pH', 'blood pH', 'blood pH'),
    ('neutrophils', 'neutrophil percentage', '', '', 'neutrophil percentage'),
    ('lymphocytes', 'lymphocyte percentage', '', '', 'lymphocyte percentage'),
    ('hemoglobin', 'hemoglobin', '', '', 'hemoglobin'),
    ('', 'mean corpuscular volume', '', '', 'mean corpuscular volume'),
    ('', 'mean corpuscular hemoglobin', '', '', 'mean corpuscular hemoglobin'),
    ('', 'mean corpuscular hemoglobin concentration', '', '', 'mean corpuscular hemoglobin concentration'),
    ('', 'fibrinogen', '', '', 'fibrinogen'),
    ('INR', 'INR', '', '', 'INR'),
    ('', 'direct bilirubin', '', '', 'direct bilirubin'),
    ('chloride', 'chloride', '', '', 'chloride'),
    ('calcium', 'calcium', '', '', 'calcium'),
    ('', 'hs-CRP', '', '', 'C-reactive protein'),
    ('PTT', 'aPTT', '', '', 'partial thromboplastin time'),
    ('heart rate', '', 'heart rate', 'heart rate', 'heart rate'),
    ('mean arterial pressure', '', 'mean arterial pressure', 'mean blood pressure', 'mean arterial pressure'),
    ('troponin T', '', 'troponin T', '', 'troponin T'),
    ('respiratory rate', '', 'respiratory rate', 'respiratory rate', 'respiratory rate'),
    ('oxygen saturation', '', 'oxygen saturation', 'oxygen saturation', 'oxygen saturation'),
    ('FiO2', '', 'FiO2', 'FiO2', 'FiO2'),
    ('pO2', '', 'PaO2', '', 'PaO2'),
    ('pCO2', '', 'PaCO2', '', 'PaCO2'),
    ('temperature', '', 'temperature', 'temperature', 'temperature'),
    ('urine output', '', 'urine output', '', 'urine output'),
    ('lactate', '', 'lactate', '', 'lactate'),
    ('magnesium', '', 'magnesium', '', 'magnesium'),
    ('', '', 'height', 'height', 'height'),
    ('', '', 'weight', 'weight', 'weight'),
    ('systolic pressure', '', 'systolic arterial pressure', 'systolic blood pressure', 'systolic blood pressure'),
    ('diastolic pressure', '', 'diastolic arterial pressure', 'diastolic blood pressure', 'diastolic blood pressure'),
    ('Glasgow coma scale', '', 'Glasgow coma score', 'GCS total', ''),
    ('base excess', '', '', '', 'base excess'),
    ('phosphate', '', '', '', 'phosphate'),
)
OTHER_UNITS = {'urine output'}  # of an hour, or since the last


def plausible(spec: FeatureSpec) -> float:
  if spec.levels:
    return spec.levels[-1][0]
  return (spec.hard_low + spec.hard_high) / 2 if spec.ref_low is None else (spec.ref_low + spec.ref_high) / 2


def measured_once(table: FeatureTable, **values: float):
  """A patient with one value of every feature of a table, or of these."""
  values = values or {spec.name: plausible(spec) for spec in table}
  rows = sorted((0, 0.0, table.require(name, ''), value) for name, value in values.items())
  return cohort_of(rows, n=1, specs=table.specs)


def sent(values: dict[str, float], source: FeatureTable, run: FeatureTable) -> dict[str, float]:
  """What arrives of these values, under the run's names."""
  cohort, _ = foreign.remap(measured_once(source, **values), run)
  return {run[int(f)].name: float(v) for f, v in zip(cohort.feature, cohort.value)}


@pytest.mark.parametrize(('one', 'two'), list(itertools.permutations(SOURCES, 2)))
def test_every_pair_of_sources_meets_in_all_that_both_measure(one, two):
  source, run = TABLES[one], TABLES[two]
  pairs = [(row[SOURCES.index(one)], row[SOURCES.index(two)]) for row in SHARED]
  expected = {pair for pair in pairs if all(pair)}
  assert {(source[f].name, run[i].name) for i, f in foreign.meet(source, run).items()} == expected
  apart = {b for a, b in expected if b in OTHER_UNITS and source[source.require(a, '')].unit
           != run[run.require(b, '')].unit}
  cohort, match = foreign.remap(measured_once(source), run)
  assert set(match.mapped) == {b for _, b in expected} - apart and set(match.units) == apart
  assert {run[int(f)].name for f in cohort.feature} == set(match.mapped)


def test_a_pressure_by_a_line_goes_before_one_by_a_cuff():
  physionet, mimic = TABLES['physionet2012'], TABLES['mimic4']
  kinds = ('systolic', 'diastolic', 'mean')
  line = dict(zip((f'{kind} arterial pressure' for kind in kinds), (120, 70, 85)))
  cuff = dict(zip((f'non-invasive {kind} pressure' for kind in kinds), (100, 60, 75)))
  names = [f'{kind} blood pressure' for kind in kinds]
  assert sent(line | cuff, physionet, mimic) == dict(zip(names, line.values()))
  for order in (physionet.specs, physionet.specs[::-1]):
    assert sent(line | cuff, FeatureTable(order), mimic) == dict(zip(names, line.values()))
  without = FeatureTable(tuple(s for s in physionet if s.name not in line))
  assert sent(cuff, without, mimic) == dict(zip(names, cuff.values()))
  assert sent(dict(zip(names, (120, 70, 85))), mimic, physionet) == line  # and no cuff's
  assert sent(line | cuff, physionet, physionet) == line | cuff


def test_a_cuff_speaks_for_patients_without_a_line():
  """Patient 0 has a line at some time, 1 has none; the run has no cuff of its own, or it has."""
  physionet, mimic = TABLES['physionet2012'], TABLES['mimic4']
  line, cuff = (physionet.require(f'{kind} pressure', '') for kind in ('systolic arterial', 'non-invasive systolic'))
  rows = [(0, 0.0, cuff, 100.0), (0, 5.0, line, 120.0), (1, 1.0, cuff, 90.0), (1, 2.0, cuff, 95.0)]
  made = cohort_of(rows, n=2, specs=physionet.specs)
  mapped, match = foreign.remap(made, mimic)
  assert [mimic[int(f)].name for f in mapped.feature] == ['systolic blood pressure'] * 3
  assert list(zip(mapped.patient, mapped.value)) == [(0, 120), (1, 90), (1, 95)]
  assert (foreign.STOOD_IN, 2, 'values') in mapped.attrition
  assert match.unknown == len(physionet) - len(foreign.meet(physionet, mimic)) - 3  # of which the cuffs are not
  without, _ = foreign.remap(cohort_of(rows[:2], n=2, specs=physionet.specs), mimic)
  assert foreign.STOOD_IN not in [step for step, *_ in without.attrition]
  own, _ = foreign.remap(made, physionet)
  assert own.feature.tolist() == made.feature.tolist()


def test_a_line_behind_the_window_keeps_no_cuff_from_it():
  """A line of hour 30 says nothing of the first day, and must not be seen in it."""
  physionet, mimic = TABLES['physionet2012'], TABLES['mimic4']
  line, cuff = (physionet.require(f'{kind} pressure', '') for kind in ('systolic arterial', 'non-invasive systolic'))
  made = cohort_of([(0, 0.0, cuff, 90.0), (0, 30.0, line, 120.0)], n=1, specs=physionet.specs)
  day, _ = foreign.remap(made, mimic, 24.0)
  assert list(zip(day.hour, day.value)) == [(0, 90), (30, 120)] and (foreign.STOOD_IN, 1, 'values') in day.attrition
  whole, _ = foreign.remap(made, mimic)
  assert whole.value.tolist() == [120]


@pytest.mark.parametrize(('line', 'unit', 'value', 'arrives'), [
    ('mmHg', 'kPa', 12.0, [90.007, 120]), ('', 'kPa', 12.0, [90.007, 120]), ('kPa', '', 90.0, [90, 120.01]),
    ('mmHg', 'furlong', 12.0, [120])])
def test_what_stands_in_is_converted_to_the_runs_unit(line, unit, value, arrives):
  table = FeatureTable((FeatureSpec('SBP', line), FeatureSpec('NISysABP', unit)))
  made = cohort_of([(0, 0.0, 1, value), (1, 0.0, 0, 16.0 if line == 'kPa' else 120.0)], n=2, specs=table.specs)
  mapped, _ = foreign.remap(made, TABLES['mimic4'])
  assert sorted(mapped.value.tolist()) == pytest.approx(arrives, abs=0.01)


def test_of_three_names_of_a_concept_a_patient_brings_the_first_that_it_has():
  table = FeatureTable(tuple(FeatureSpec(name, 's') for name in ('PTT', 'aPTT', 'partial thromboplastin time')))
  rows = [(0, 0.0, 0, 30.0), (0, 0.0, 2, 31.0), (1, 0.0, 0, 32.0), (2, 0.0, 0, 33.0), (2, 0.0, 1, 34.0)]
  mapped, _ = foreign.remap(cohort_of(rows, n=3, specs=table.specs), FeatureTable((FeatureSpec(
      'activated partial thromboplastin time', 's'),)))
  assert list(zip(mapped.patient, mapped.value)) == [(0, 31), (1, 32), (2, 34)]


def test_a_coma_score_is_a_number_or_its_levels():
  physionet, mimic = TABLES['physionet2012'], TABLES['mimic4']
  for value in (3, 9, 15, 12.5):  # a mean of a visit
    assert sent({'Glasgow coma score': value}, physionet, mimic) == {'GCS total': value}
    assert sent({'GCS total': value}, mimic, physionet) == {'Glasgow coma score': value}
  parts = FeatureTable((FeatureSpec('GCS eye'), FeatureSpec('GCS')))  # whose words say more than their numbers
  assert foreign.remap(measured_once(mimic), parts)[1].units == ('GCS eye',)


def test_no_spelling_is_of_two_concepts():
  table = FeatureTable(tuple(FeatureSpec(name, aliases=rest) for name, *rest in concepts.CONCEPTS))
  assert len(table) == len(concepts.CONCEPTS)
  assert all(concepts.find(table, spellings) == i for i, spellings in enumerate(concepts.CONCEPTS))
