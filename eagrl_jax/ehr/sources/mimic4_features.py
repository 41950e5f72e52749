"""The 17 variables of the published MIMIC-IV benchmarks, and the items of MIMIC-IV that measure them.

Twelve are numbers and five have levels: 2 + 4 + 6 + 5 + 13, in all 42 channels of the expert, which reads levels one
by one; a prompt shows 17 variables. A verbal response behind a tube is not assessed: it counts neither by itself nor
in the total. pH is of blood alone; dipsticks, urine and other fluids have items of their own. The saturation of a
blood gas is left out: one item holds arterial and venous blood.
"""

from __future__ import annotations

import dataclasses

from eagrl_jax.ehr.features import FeatureSpec, FeatureTable

_DEG_F = (('degF', 5 / 9, -160 / 9), ('degC', 1.0, 0.0))
_EYE = ((1.0, 'none'), (2.0, 'to pain'), (3.0, 'to speech'), (4.0, 'spontaneous'))
_MOTOR = ((1.0, 'none'), (2.0, 'abnormal extension'), (3.0, 'abnormal flexion'), (4.0, 'flexion withdrawal'),
          (5.0, 'localizes pain'), (6.0, 'obeys commands'))
_VERBAL = ((1.0, 'none'), (2.0, 'incomprehensible sounds'), (3.0, 'inappropriate words'), (4.0, 'confused'),
           (5.0, 'oriented'))
_TOTAL = tuple((float(n), str(n)) for n in range(3, 16))
_REFILL = ((0.0, 'below 3 s'), (1.0, 'above 3 s'))


def _ordinal(name: str, levels: tuple[tuple[float, str], ...], normal: float, group: str, *aliases: str) -> FeatureSpec:
  return FeatureSpec(name, '', normal, normal, levels[0][0], levels[-1][0], decimals=0, kind='ordinal', levels=levels,
                     group=group, aliases=aliases, encoding='one_hot')


def _number(name: str, unit: str, ref: tuple[float, float] | None, hard: tuple[float, float], group: str, *aliases: str,
            decimals: int = 0, log: bool = False, units: tuple[tuple[str, float, float], ...] = ()) -> FeatureSpec:
  low, high = ref or (None, None)
  return FeatureSpec(name, unit, low, high, *hard, decimals=decimals, log=log, group=group, aliases=aliases,
                     accepted_units=units)


FEATURES = FeatureTable((
    _ordinal('capillary refill', _REFILL, 0, 'circulation', 'capillary refill rate'),
    _number('diastolic blood pressure', 'mmHg', (60, 90), (5, 200), 'circulation', 'DBP'),
    _number('heart rate', '/min', (60, 100), (10, 300), 'circulation', 'HR', 'pulse', units=(('bpm', 1, 0),)),
    _number('mean blood pressure', 'mmHg', (70, 105), (10, 250), 'circulation', 'MAP', 'mean arterial pressure'),
    _number('systolic blood pressure', 'mmHg', (90, 140), (20, 300), 'circulation', 'SBP'),
    _number('FiO2', '%', (21, 21), (21, 100), 'respiration', 'fraction inspired oxygen'),
    _number('oxygen saturation', '%', (94, 100), (20, 100), 'respiration', 'SpO2'),
    _number('respiratory rate', '/min', (12, 20), (1, 80), 'respiration', 'RR',
            units=(('insp/min', 1, 0), ('bpm', 1, 0))),
    _number('blood pH', '', (7.35, 7.45), (6.5, 8), 'respiration', 'pH', decimals=2),
    _ordinal('GCS eye opening', _EYE, 4, 'brain and temperature', 'Glasgow coma scale eye opening'),
    _ordinal('GCS motor response', _MOTOR, 6, 'brain and temperature', 'Glasgow coma scale motor response'),
    _ordinal('GCS verbal response', _VERBAL, 5, 'brain and temperature', 'Glasgow coma scale verbal response'),
    _ordinal('GCS total', _TOTAL, 15, 'brain and temperature', 'Glasgow coma scale total'),
    _number('temperature', 'degC', (36.1, 37.8), (25, 45), 'brain and temperature', decimals=1, units=_DEG_F),
    _number('glucose', 'mg/dL', (70, 140), (5, 2000), 'metabolism', log=True, units=(('mmol/L', 18.016, 0),)),
    _number('height', 'cm', None, (100, 230), 'admission', units=(('inch', 2.54, 0),)),
    _number('weight', 'kg', None, (20, 350), 'admission', decimals=1, units=(('lb', 0.45359237, 0),)),
))


@dataclasses.dataclass(frozen=True)
class Item:
  """One itemid; `unit` is meant where a row gives none. `words`: (text, level) instead of numbers."""

  itemid: int
  feature: str
  unit: str = ''
  words: tuple[tuple[str, float], ...] = ()
  not_assessed: tuple[str, ...] = ()  # texts that are no value although a number stands beside them


_REFILL_WORDS = (('Normal <3 Seconds', 0.0), ('Abnormal >3 Seconds', 1.0))
CHART = (
    *(Item(i, 'capillary refill', words=_REFILL_WORDS) for i in (223951, 224308)),
    *(Item(i, 'diastolic blood pressure', 'mmHg') for i in (220051, 220180, 225310, 224643, 227242)),
    *(Item(i, 'systolic blood pressure', 'mmHg') for i in (220050, 220179, 225309, 224167, 227243)),
    *(Item(i, 'mean blood pressure', 'mmHg') for i in (220052, 220181, 225312)),
    Item(220045, 'heart rate', 'bpm'),
    Item(223835, 'FiO2', '%'),
    *(Item(i, 'oxygen saturation', '%') for i in (220277, 220227)),
    *(Item(i, 'respiratory rate', 'insp/min') for i in (220210, 224690)),
    *(Item(i, 'blood pH') for i in (223830, 220274)),
    Item(220739, 'GCS eye opening'), Item(223901, 'GCS motor response'),
    Item(223900, 'GCS verbal response', not_assessed=('No Response-ETT',)),
    Item(223761, 'temperature', 'degF'), Item(223762, 'temperature', 'degC'), Item(226329, 'temperature', 'degC'),
    *(Item(i, 'glucose', 'mg/dL') for i in (220621, 225664, 226537)),
    Item(226707, 'height', 'inch'), Item(226730, 'height', 'cm'),
    Item(226512, 'weight', 'kg'), Item(224639, 'weight', 'kg'), Item(226531, 'weight', 'lb'),
)
LAB = (Item(50820, 'blood pH'), *(Item(i, 'glucose', 'mg/dL') for i in (50931, 50809)), Item(50816, 'FiO2', '%'))
GCS = ('GCS eye opening', 'GCS motor response', 'GCS verbal response')
FRACTION = 'FiO2'  # written as a percentage or as a fraction of 1: a value up to 1 is the fraction
