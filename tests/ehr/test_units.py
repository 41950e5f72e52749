"""Units that are converted by what they are, and those that must not be."""

import itertools
import re

import numpy as np
import pytest

from eagrl_jax.ehr import units
from eagrl_jax.ehr.features import FeatureSpec
from eagrl_jax.ehr.sources import physionet2012_features, synthetic_features, tjh_features, yaib_features

TABLES = {'tjh': tjh_features.FEATURES, 'physionet2012': physionet2012_features.FEATURES,
          'yaib': yaib_features.FEATURES, 'synthetic': synthetic_features.TABLE}
# By the usual factors from conventional to SI units: 88.4, .0555, .357, 17.1, .0259, 59.48, .2495, .411, .323, .111.
KNOWN = [('creatinine', 'mg/dL', 1.3, 'umol/L', 114.9), ('glucose', 'mg/dL', 105, 'mmol/L', 5.83),
         ('urea nitrogen', 'mg/dL', 20, 'mmol/L', 7.14), ('bilirubin', 'mg/dL', 1.2, 'umol/L', 20.5),
         ('total cholesterol', 'mg/dL', 200, 'mmol/L', 5.17), ('uric acid', 'mg/dL', 8, 'umol/L', 475.9),
         ('calcium', 'mg/dL', 10.2, 'mmol/L', 2.545), ('magnesium', 'mg/dL', 2.4, 'mmol/L', 0.987),
         ('phosphate', 'mg/dL', 4.5, 'mmol/L', 1.453), ('lactate', 'mg/dL', 18.02, 'mmol/L', 2.0),
         ('albumin', 'g/dL', 5, 'g/L', 50), ('C-reactive protein', 'mg/dL', 0.5, 'mg/L', 5),
         ('troponin I', 'ug/L', 0.04, 'pg/mL', 40), ('ferritin', 'ng/mL', 300, 'ug/L', 300),
         ('sodium', 'mEq/L', 140, 'mmol/L', 140), ('ALT', 'IU/L', 40, 'U/L', 40), ('FiO2', 'fraction', 0.21, '%', 21),
         ('platelets', 'K/uL', 150, '10^9/L', 150), ('red cells', '10^6/uL', 4.5, '10^12/L', 4.5),
         ('temperature', '°F', 98.6, 'degC', 37), ('PaO2', 'kPa', 10, 'mmHg', 75.006),
         ('weight', 'lb', 100, 'kg', 45.36), ('MCHC', '%', 34, 'g/L', 340)]


@pytest.mark.parametrize(('name', 'unit', 'value', 'to', 'same'), KNOWN)
def test_both_ways(name, unit, value, to, same):
  scale, offset = units.into(FeatureSpec(name, to), unit)
  assert scale * value + offset == pytest.approx(same, rel=2e-3)
  back, other = units.into(FeatureSpec(name, unit), to)
  assert back * (scale * value + offset) + other == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(('name', 'unit', 'to'), [
    ('urea', 'mg/dL', 'mmol/L'), ('calcium', 'mEq/L', 'mmol/L'), ('interferon', 'mg/L', 'mmol/L'),
    ('platelets', 'G/L', '10^9/L'), ('platelets', 'g/dL', 'G/L'), ('glucose', 'kelvin', 'mmol/L'),
    ('lactate', 'mmol/L', ''), ('x', '', 'mg/L'), ('hematocrit', '%', 'g/L')])
def test_what_would_be_a_guess_is_none(name, unit, to):
  assert units.into(FeatureSpec(name, to), unit) is None


def test_the_specs_own_unit_comes_first_and_the_side_that_gives_a_mass_says_of_what():
  spec = FeatureSpec('glucose', 'mmol/L', accepted_units=(('mg/dL', 0.05, 1.0),))
  assert units.into(spec, 'mg/dL') == (0.05, 1.0)
  assert units.conversion(spec, FeatureSpec('glucose', 'mg/dL')) == (20.0, -20.0)
  urea = FeatureSpec('urea', 'mmol/L', aliases=('blood urea nitrogen',))
  nitrogen = FeatureSpec('urea nitrogen', 'mg/dL')
  assert units.conversion(nitrogen, urea)[0] == pytest.approx(1 / units.conversion(urea, nitrogen)[0])
  assert units.conversion(nitrogen, urea)[0] == pytest.approx(0.357, rel=1e-3)
  also = FeatureSpec('urea nitrogen', 'mmol/L', aliases=('urea',))  # in mmol/L they are the same
  assert units.into(also, 'mg/dL') is None  # of a row that may be urea's
  assert units.into(FeatureSpec('urea nitrogen', 'mg/dL', aliases=('urea',)), 'mmol/L')[0] == pytest.approx(2.8013)
  for mass in (FeatureSpec('urea', 'mg/dL'), FeatureSpec('urea', 'mg/dL', aliases=('blood urea nitrogen',))):
    assert units.conversion(mass, also) is None and units.conversion(also, mass) is None
  assert units.conversion(FeatureSpec('a', kind='ordinal', levels=((0, 'no'),)), FeatureSpec('a')) is None


@pytest.mark.parametrize(('one', 'two'), list(itertools.permutations(TABLES, 2)))
def test_features_that_two_cohorts_share_have_like_reference_ranges(one, two):
  """A wrong factor shows as a range far from the other's."""
  found = 0
  for spec in TABLES[one]:
    at = next((i for n in (spec.name, *spec.aliases) if (i := TABLES[two].find(n)) is not None), None)
    if at is None or spec.ref_high is None or TABLES[two][at].ref_high is None or spec.kind == 'ordinal':
      continue
    change = units.conversion(spec, TABLES[two][at])
    if change is None:
      assert {spec.unit, TABLES[two][at].unit} == {'mL', 'mL/h'}, spec.name
      continue
    high = change[0] * spec.ref_high + change[1]
    ratio = 12 if 'roponin' in spec.name else 2.05  # assays of troponin have limits of their own
    assert 1 / ratio < high / TABLES[two][at].ref_high < ratio, (spec.name, high, TABLES[two][at].ref_high)
    found += 1
  assert found >= 14


# UCUM's codes (ucum.org) of what wards and laboratories measure, beside a usual unit: (scale, offset) into it.
UCUM = [('systolic pressure', 'mm[Hg]', 'mmHg', 1, 0), ('airway pressure', 'cm[H2O]', 'cmH2O', 1, 0),
        ('temperature', 'Cel', 'degC', 1, 0), ('temperature', '[degF]', 'degC', 5 / 9, -160 / 9),
        ('temperature', 'K', 'degC', 1, -273.15), ('platelets', '10*3/uL', 'K/uL', 1, 0),
        ('platelets', '10*9/L', '10^9/L', 1, 0), ('red cells', '10*6/uL', '10^12/L', 1, 0),
        ('red cells', '10*12/L', '10^12/L', 1, 0), ('red cells', '10*6/L', '10^12/L', 1e-6, 0),
        ('lymphocytes', '{cells}/uL', '10^9/L', 1e-3, 0), ('weight', '[lb_av]', 'kg', 0.45359237, 0),
        ('height', '[in_i]', 'cm', 2.54, 0), ('heart rate', '/min', '/min', 1, 0),
        ('heart rate', '{beats}/min', 'bpm', 1, 0), ('respiratory rate', '{breaths}/min', '/min', 1, 0),
        ('oxygen saturation', '%', '%', 1, 0), ('creatinine', 'umol/L', 'mg/dL', 113.12e-4, 0),
        ('glucose', 'mmol/L', 'mmol/L', 1, 0), ('ferritin', 'ug/L', 'ng/mL', 1, 0), ('albumin', 'g/dL', 'g/L', 10, 0),
        ('ALT', 'U/L', 'IU/L', 1, 0), ('ALT', '[IU]/L', 'U/L', 1, 0), ('antigen', '[iU]/mL', 'IU/mL', 1, 0),
        ('sodium', 'meq/L', 'mmol/L', 1, 0), ('TSH', 'm[IU]/L', 'mIU/L', 1, 0),
        ('eGFR', 'mL/min/{1.73_m2}', 'mL/min/1.73m2', 1, 0), ('eGFR', 'mL/min/1.73.m2', 'mL/min/1.73m2', 1, 0),
        ('pH', '[pH]', '', 1, 0), ('INR', '{INR}', '', 1, 0), ('GCS', '{score}', '', 1, 0), ('INR', '1', '', 1, 0)]


@pytest.mark.parametrize(('name', 'ucum', 'unit', 'scale', 'offset'), UCUM)
def test_ucum_is_read_and_written(name, ucum, unit, scale, offset):
  one, two = FeatureSpec(name, unit), FeatureSpec(name, ucum)
  for found in (units.into(one, ucum), units.into(one, ucum.upper()), units.conversion(two, one)):
    assert found == pytest.approx((scale, offset))
  for back in (units.into(two, unit), units.conversion(one, two)) if unit else ():
    assert back == pytest.approx((1 / scale, -offset / scale))


@pytest.mark.parametrize(('name', 'unit', 'to'), [
    ('D-dimer', 'ug/mL{FEU}', 'ug/mL'), ('D-dimer', 'ug/mL{FEU}', 'ug/mL{DDU}'), ('glucose', '{score}', 'mmol/L'),
    ('glucose', '1', 'mmol/L'), ('weight', '[lb_tr]', 'kg'), ('INR', 'mm[Hg]', ''), ('potassium', 'K', 'mmol/L')])
def test_ucum_that_says_something_else_is_none(name, unit, to):
  assert units.into(FeatureSpec(name, to), unit) is None and units.conversion(
      FeatureSpec(name, unit), FeatureSpec(name, to)) is None


def test_what_a_spec_says_of_one_comes_before_ucums_no_unit():
  spec = FeatureSpec('FiO2', '', accepted_units=(('1', 100, 0),))
  assert units.into(spec, '1') == units.conversion(FeatureSpec('FiO2', '1'), spec) == (100, 0)


def test_the_letter_of_potassium_is_no_unit_of_whatever_feature():
  assert units.known('Cel') and units.known('mm[Hg]') and not units.known('K')


SI = {'': 1, 'd': 1e-1, 'c': 1e-2, 'm': 1e-3, 'u': 1e-6, 'n': 1e-9, 'p': 1e-12, 'k': 1e3}


def read(unit):
  """How much a unit is, read letter by letter: amount and prefix, over what it is counted in."""
  counted, _, volume = unit.partition('/')
  of = re.fullmatch('(.?)(l|m3)', volume)
  litres = SI[of[1]] if of[2] == 'l' else 1e-6  # a cubic millimetre
  amount = re.fullmatch(r'(.?)(g|mol)|10\^(\d+)|(cells)?|([km])|(i?u)', counted)
  if amount[2]:
    return SI[amount[1]] / litres
  return (10.0 ** int(amount[3]) if amount[3] else {'k': 1e3, 'm': 1e6}.get(amount[5], 1.0)) / litres


def test_every_concentration_is_what_its_letters_say():
  mass, substance, cells, enzymes = units._DIMENSIONS[:4]
  for dimension in (mass, substance, cells, enzymes):
    for unit, factor in dimension.items():
      np.testing.assert_allclose(factor, read(unit), err_msg=unit)
