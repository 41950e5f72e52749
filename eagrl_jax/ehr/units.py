"""What the units of laboratories and monitors have to do with each other, where nothing has to be guessed.

Powers of ten, two spellings of one unit, and between mass and substance the molar mass of what is measured (IUPAC's
atomic weights). A charge is an amount of substance for ions of one charge alone. Urea by its mass is left out: half of
the laboratories mean its nitrogen.
"""

from __future__ import annotations

import re

from eagrl_jax.ehr.features import FeatureSpec, canonical, plain_unit

# Units of one dimension, and how many of the first's each is.
_MASS = {'g/l': 1.0, 'g/dl': 10.0, 'mg/dl': 1e-2, 'mg/l': 1e-3, 'ug/ml': 1e-3, 'ug/dl': 1e-5, 'ug/l': 1e-6,
         'ng/ml': 1e-6, 'ng/dl': 1e-8, 'ng/l': 1e-9, 'pg/ml': 1e-9}
_SUBSTANCE = {'mol/l': 1.0, 'mmol/l': 1e-3, 'umol/l': 1e-6, 'nmol/l': 1e-9}
_DIMENSIONS = (
    _MASS, _SUBSTANCE,
    {'/l': 1.0, '10^12/l': 1e12, 'm/ul': 1e12, '10^6/ul': 1e12, '10^9/l': 1e9, 'k/ul': 1e9, '10^3/ul': 1e9,
     '10^6/mm3': 1e12, '10^3/mm3': 1e9, '10^6/l': 1e6, '/ul': 1e6, '/mm3': 1e6, 'cells/nl': 1e9, 'cells/ul': 1e6},
    {'u/l': 1.0, 'iu/l': 1.0, 'u/ml': 1e3, 'iu/ml': 1e3},
    {'/min': 1.0, 'bpm': 1.0, 'beats/min': 1.0, 'breaths/min': 1.0, 'insp/min': 1.0},
    {'%': 1.0, 'fraction': 100.0},
    {'mmhg': 1.0, 'kpa': 7.500617, 'cmh2o': 0.735559},
    {'cm': 1.0, 'm': 100.0, 'mm': 0.1, 'in': 2.54, 'inch': 2.54},
    {'kg': 1.0, 'g': 1e-3, 'lb': 0.45359237, 'lbs': 0.45359237},
    {'mm/h': 1.0, 'mm/hr': 1.0}, {'s': 1.0, 'sec': 1.0, 'seconds': 1.0}, {'fl': 1.0, 'um3': 1.0})
_CELSIUS = {'degc': (1.0, 0.0), 'c': (1.0, 0.0), 'degf': (5 / 9, -160 / 9), 'f': (5 / 9, -160 / 9),
            'k': (1.0, -273.15)}
_UNITY = re.compile(r'1?|\[ph\]|{[^{}]*}')  # how UCUM writes that there is no unit: a pH, an INR, a score
_CHARGE = {'meq/l': 'mmol/l'}  # which it is of ions of one charge
_ONE_CHARGE = {canonical(n) for n in ('sodium', 'potassium', 'chloride', 'bicarbonate', 'base excess', 'anion gap')}
_BY_VOLUME = {'%': 'g/dl'}  # of the haemoglobin in red cells, weight by volume
_IN_CELLS = {canonical(n) for n in ('mean corpuscular hemoglobin concentration', 'MCHC')}
_GRAMS_A_MOLE = {canonical(n): mass for n, mass in {
    'creatinine': 113.12, 'glucose': 180.16, 'lactate': 90.08, 'urea nitrogen': 28.013, 'blood urea nitrogen': 28.013,
    'bilirubin': 584.66, 'total bilirubin': 584.66, 'direct bilirubin': 584.66, 'indirect bilirubin': 584.66,
    'cholesterol': 386.65, 'total cholesterol': 386.65, 'uric acid': 168.11, 'calcium': 40.078,
    'corrected calcium': 40.078, 'magnesium': 24.305, 'phosphate': 30.974}.items()}  # phosphate as phosphorus

_UREA = canonical('urea')


def into(spec: FeatureSpec, unit: str) -> tuple[float, float] | None:
  """(scale, offset) from a declared unit to the feature's own; None where neither its spec nor this file says how.

  The unit is a row's, which may have any of the feature's names.
  """
  if plain_unit(unit) == plain_unit(spec.unit):
    return 1.0, 0.0
  if (found := _accepted(spec, unit)) is not None:
    return found
  if _is_none(unit) and _is_none(spec.unit):
    return 1.0, 0.0
  names = _names(spec)
  return _between(unit, spec.unit, None if _UREA in names else _grams_of(names), _grams(spec), names)


def known(unit: str) -> bool:
  """Whether this file knows the unit, of whatever feature. K alone may be potassium."""
  plain = plain_unit(unit)
  return plain != 'k' and any(plain in units for units in (*_DIMENSIONS, _CELSIUS, _CHARGE))


def conversion(spec: FeatureSpec, to: FeatureSpec) -> tuple[float, float] | None:
  """(scale, offset) from one spec's unit to another's for the same feature; None where nothing says how.

  A value without a unit is taken to be in the other's. What the specs say comes before what this file knows. A number
  and levels are the same only where the levels' words are their numbers, as those of a coma score.
  """
  if spec.kind != to.kind and not (_words_are_numbers(spec) or _words_are_numbers(to)):
    return None
  if not spec.unit or plain_unit(spec.unit) == plain_unit(to.unit):
    return 1.0, 0.0
  if (found := _accepted(to, spec.unit)) is not None:
    return found
  if (back := _accepted(spec, to.unit)) is not None and back[0]:
    return 1 / back[0], -back[1] / back[0]
  if _is_none(spec.unit) and _is_none(to.unit):
    return 1.0, 0.0
  return _between(spec.unit, to.unit, _grams(spec), _grams(to), _names(spec) + _names(to))


def levels(spec: FeatureSpec, to: FeatureSpec) -> dict[float, float] | None:
  """Level of one spec -> level of the other with the same word, for the same feature.

  Empty where numbers stay as they are: no word has another number and one has the same, or one spec has no levels. A
  word that the other spec does not know is left out; None where its number means another word there.
  """
  mine, theirs = ({n: ' '.join(word.lower().split()) for n, word in s.levels} for s in (spec, to))
  if not mine or not theirs:
    return {}
  number = {word: n for n, word in theirs.items()}
  found = {n: number[word] for n, word in mine.items() if word in number}
  taken = any(n in theirs for n in mine.keys() - found.keys())
  if all(n == other for n, other in found.items()) and (found or not taken):
    return {}
  return None if taken else found


def _words_are_numbers(spec: FeatureSpec) -> bool:
  return bool(spec.levels) and all(word == f'{n:g}' for n, word in spec.levels)


def _is_none(unit: str) -> bool:
  return bool(_UNITY.fullmatch(plain_unit(unit)))


def _accepted(spec: FeatureSpec, unit: str) -> tuple[float, float] | None:
  return next(((scale, offset) for other, scale, offset in spec.accepted_units
               if plain_unit(other) == plain_unit(unit)), None)


def _names(spec: FeatureSpec) -> list[str]:
  return [canonical(name) for name in (spec.name, *spec.aliases)]


def _grams_of(names: list[str]) -> float | None:
  return next((_GRAMS_A_MOLE[n] for n in names if n in _GRAMS_A_MOLE), None)


def _grams(spec: FeatureSpec) -> float | None:
  """Grams a mole of what the spec is a mass of, by its own name, else by an alias."""
  return None if canonical(spec.name) == _UREA else _grams_of(_names(spec))


def _between(unit: str, to: str, grams: float | None, to_grams: float | None, names: list[str]
             ) -> tuple[float, float] | None:
  """(scale, offset) from a unit to another.

  Args:
    grams, to_grams: a mole of what is measured weighs, as either side means it: the one that gives a mass counts.
    names: canonical, of what is measured.
  """
  if 'G/L' in (unit.strip(), to.strip()):  # giga in France, grams where all units are in capitals
    return None
  a, b = plain_unit(unit), plain_unit(to)
  if a in _CELSIUS and b in _CELSIUS:
    (scale, offset), (other, other_offset) = _CELSIUS[a], _CELSIUS[b]
    return scale / other, (offset - other_offset) / other
  if not _ONE_CHARGE.isdisjoint(names):
    a, b = (_CHARGE.get(u, u) for u in (a, b))
  if not _IN_CELLS.isdisjoint(names):
    a, b = (_BY_VOLUME.get(u, u) for u in (a, b))
  for dimension in _DIMENSIONS:
    if a in dimension and b in dimension:
      return dimension[a] / dimension[b], 0.0
  if a in _MASS and b in _SUBSTANCE and grams:
    return _MASS[a] / grams / _SUBSTANCE[b], 0.0
  if a in _SUBSTANCE and b in _MASS and to_grams:
    return _SUBSTANCE[a] * to_grams / _MASS[b], 0.0
  return None
