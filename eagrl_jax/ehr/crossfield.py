"""Values that cannot stand beside each other in one patient at one time.

Which of them is wrong cannot be told, so those that a rule names become missing; a total is its parts' sum where all
of them are there. Rules hold for features that are spelt in a known way, in the units that they are written for.
Pressures without a unit are compared too, as far as their size says mmHg: standardised values may stand in any order.
The dissociation curve needs its units.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from eagrl_jax.ehr import concepts
from eagrl_jax.ehr.features import FeatureTable, plain_unit
from eagrl_jax.ehr.records import Cohort, Rejects

_LEAST = 20.0  # mmHg from which on a number without a unit is a pressure
_ROUNDING = 1.0  # mmHg by which a mean pressure may lie outside: each of the three is rounded
_SATURATION = 25.0  # percentage points from the dissociation curve: more than acidosis and fever move it


@dataclasses.dataclass(frozen=True)
class Rule:
  """`wrong` over the values of `roles` at one time, in numpy and in SQL; `aside` are the roles that become missing."""

  reason: str
  roles: tuple[tuple[str, ...], ...]  # spellings of each
  wrong: Callable[..., np.ndarray]
  sql: str  # over r0, r1, ...
  aside: tuple[int, ...]
  units: tuple[tuple[str, ...], ...]  # plain ones of each role


def dissociation(po2: np.ndarray) -> np.ndarray:
  """Oxygen saturation in % at a partial pressure in mmHg (Severinghaus, J Appl Physiol 1979;46:599)."""
  return 100 / (23400 / np.maximum(po2**3 + 150 * po2, 1e-9) + 1)


_MMHG = ('mmhg', '')
_PRESSURES = (('pressure', concepts.SYSTOLIC, concepts.DIASTOLIC, concepts.MEAN),
              ('non-invasive pressure', concepts.CUFF_SYSTOLIC, concepts.CUFF_DIASTOLIC, concepts.CUFF_MEAN))

RULES = (
    *(Rule(f'systolic below diastolic {name}', (systolic, diastolic), lambda s, d: s < d, 'r0 < r1', (0, 1),
           (_MMHG,) * 2)
      for name, systolic, diastolic, _ in _PRESSURES),
    *(Rule(f'mean {name} not between diastolic and systolic', (mean, systolic, diastolic),
           lambda m, s, d: (s >= d) & ((m > s + _ROUNDING) | (m < d - _ROUNDING)),
           f'r1 >= r2 AND (r0 > r1 + {_ROUNDING} OR r0 < r2 - {_ROUNDING})', (0,), (_MMHG,) * 3)
      for name, systolic, diastolic, mean in _PRESSURES),
    Rule('partial pressure and saturation of oxygen exclude each other',
         (('PaO2', 'pO2'), ('oxygen saturation', 'SpO2', 'SaO2')),
         lambda p, s: np.abs(dissociation(p) - s) > _SATURATION,
         f'abs(100 / (23400 / greatest(r0**3 + 150 * r0, 1e-9) + 1) - r1) > {_SATURATION}', (0, 1),
         (('mmhg',), ('%',))))

GCS_REASON = 'GCS total is not the sum of its parts, made the sum'


def applicable(features: FeatureTable) -> Iterator[tuple[Rule, list[int]]]:
  """Rules whose features are all in the table in the rules' units, with their ids."""
  for rule in RULES:
    found = find(features, rule.roles)
    plain = [plain_unit(features[f].unit) for f in found]
    if len(found) == len(rule.roles) and all(unit in allowed for unit, allowed in zip(plain, rule.units)):
      yield rule if all(plain) else _of_pressures(rule), found


def _of_pressures(rule: Rule) -> Rule:
  """The rule where its second value, which is to bound another, has the size of a pressure."""
  return dataclasses.replace(rule, wrong=lambda *r: rule.wrong(*r) & (r[1] >= _LEAST),
                             sql=f'({rule.sql}) AND r1 >= {_LEAST}')


def find(features: FeatureTable, roles: tuple[tuple[str, ...], ...]) -> list[int]:
  """Id of every role's feature; fewer than roles where one is absent."""
  found = [concepts.find(features, names) for names in roles]
  return [f for f in found if f is not None]


def apply(cohort: Cohort) -> tuple[Cohort, list[tuple[str, int, str]]]:
  """Takes out what contradicts itself; counts by rule.

  Args:
    cohort: events sorted by (patient, hour), one value a feature and time.
  """
  steps: list[tuple[str, int, str]] = []
  n = len(cohort.value)
  new = np.append(True, (np.diff(cohort.patient) != 0) | (np.diff(cohort.hour) != 0))[:n]
  moment = np.cumsum(new) - 1
  reason = np.full(n, '', object)
  for rule, roles in applicable(cohort.features):
    rows = _together(cohort, moment, roles)
    wrong = rule.wrong(*(cohort.value[r].astype(np.float64) for r in rows))
    if wrong.any():
      steps.append((rule.reason, int(wrong.sum()), 'values'))
      for role in rule.aside:
        reason[rows[role][wrong]] = rule.reason
  drop, value = reason != '', cohort.value.copy()
  censor = None if cohort.censor is None else cohort.censor.copy()
  parts = find(cohort.features, concepts.GCS)
  if len(parts) == len(concepts.GCS):
    total, *three = _together(cohort, moment, parts)
    true = sum(cohort.value[r] for r in three)
    wrong = cohort.value[total] != true
    if wrong.any():
      steps.append((GCS_REASON, int(wrong.sum()), 'values'))
      reason[total[wrong]], value[total[wrong]] = GCS_REASON, true[wrong]
      if censor is not None:
        censor[total[wrong]] = 0
  cohort = put_aside(cohort, reason)
  return dataclasses.replace(cohort, value=value, censor=censor).pick(~drop), steps


def _together(cohort: Cohort, moment: np.ndarray, features: list[int]) -> list[np.ndarray]:
  """Event rows of these features at the moments that have them all. `F x [moments]`"""
  at = np.full((len(features), int(moment.max(initial=-1)) + 1), -1)
  for i, f in enumerate(features):
    rows = np.flatnonzero(cohort.feature == f)
    at[i, moment[rows]] = rows
  return list(at[:, (at >= 0).all(0)])


def put_aside(cohort: Cohort, reason: np.ndarray) -> Cohort:
  """Adds the events that have a reason to the rejects; the events stay. `reason [events]` str, '' = none."""
  rows = np.flatnonzero(reason != '')
  if not len(rows):
    return cohort
  ids, names = cohort.subject_id.astype(object), np.array(cohort.features.names, object)
  new = Rejects(ids[cohort.patient[rows]], cohort.hour[rows], names[cohort.feature[rows]], cohort.value[rows],
                reason[rows])
  return dataclasses.replace(cohort, rejects=cohort.rejects.join(new) if cohort.rejects else new)
