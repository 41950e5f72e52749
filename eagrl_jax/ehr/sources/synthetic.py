"""A synthetic intensive-care cohort with a known risk and a known salience for every patient.

Model and parameters: see `synthetic_outcome` (illness and death), `synthetic_features` (measurements) and
`synthetic_salience` (truth). A patient is a function of (seed, patient index) alone: a larger n adds patients and
changes none, a subset of features drops measurements and changes none of the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from eagrl_jax.ehr.records import Cohort, Truth
from eagrl_jax.ehr.sources import synthetic_salience
from eagrl_jax.ehr.sources.synthetic_features import PANELS, SENTINEL, SITES, TABLE, WHITE_CELLS, Laws, laws
from eagrl_jax.ehr.sources.synthetic_outcome import (
    Calibration,
    Latents,
    calibrate,
    draws,
    latents,
    log_odds,
    sigmoid,
    worst,
)
from eagrl_jax.types import EagrlError

CHUNK = 512  # patients simulated at once; bounds memory, changes nothing
DEFECTS = ('unit_swap', 'typo', 'sentinel', 'duplicate')
UNIT_SWAP, TYPO, SENTINEL_CODE, DUPLICATE = range(4)
HAS_SECOND_UNIT = np.array([bool(spec.accepted_units) for spec in TABLE])
SECOND_UNIT = np.array([spec.accepted_units[0][1:] if spec.accepted_units else (1.0, 0.0) for spec in TABLE])  # [F, 2]
COUPLED = tuple(TABLE.require(name, 'COUPLED') for name in (
    'systolic pressure', 'diastolic pressure', 'mean arterial pressure', 'bicarbonate', 'pCO2', 'pH', 'neutrophils',
    'lymphocytes'))


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
  """What to simulate.

  Attributes:
    n: patients.
    hours: length of the record; the prediction is made at its end.
    prevalence: expected share of deaths, in (0, 1).
    scale: multiplies every effect on the log-odds; sets how predictable the outcome can be at best.
    informative: 0 to 1, how much more often the severely ill are measured; 1 is what the demo cohorts show.
    features: names to keep, in this order; None keeps all of `TABLE`.
    stable_fraction: share of the variance between patients that is their own level and not their illness. The demo
      cohorts suggest about 0.6, where an oracle for the observed values is far below the one that sees severity;
      the default leaves a signal that a model can learn from 1,500 patients.
    site: whose medians, spreads and sampling rates, 'mimic' or 'eicu'.
    unit_swap_rate: share of values, of features that have a second unit, written in it.
    typo_rate: share of values, except zeros, multiplied by 10 or 100.
    sentinel_rate: share of values replaced by the missing-value code.
    duplicate_rate: share of rows written twice.
  """

  n: int = 2600
  hours: int = 48
  prevalence: float = 0.35
  scale: float = 1.25
  informative: float = 0.5
  features: tuple[str, ...] | None = None
  stable_fraction: float = 0.05
  site: str = 'mimic'
  unit_swap_rate: float = 0.0
  typo_rate: float = 0.0
  sentinel_rate: float = 0.0
  duplicate_rate: float = 0.0

  def __post_init__(self):
    rates = self.defect_rates
    for field, value, good, fix in (
        ('data.n', self.n, self.n >= 1, 'at least 1'),
        ('SyntheticConfig.hours', self.hours, 2 <= self.hours <= 240, '2 to 240'),
        ('data.prevalence', self.prevalence, 0 < self.prevalence < 1, 'between 0 and 1'),
        ('SyntheticConfig.scale', self.scale, 0 <= self.scale <= 10, '0 to 10'),
        ('data.informative', self.informative, 0 <= self.informative <= 1, '0 to 1'),
        ('SyntheticConfig.stable_fraction', self.stable_fraction, 0 < self.stable_fraction <= 1,
         'above 0 and at most 1'),
        ('SyntheticConfig.features', self.features,
         self.features is None or 0 < len(self.features) == len(set(self.features)), 'distinct names'),
        ('data.site', self.site, self.site in SITES, f'one of {", ".join(SITES)}'),
        (', '.join(f'SyntheticConfig.{defect}_rate' for defect in DEFECTS), rates, min(rates) >= 0 and sum(rates) <= 1,
         'not negative and at most 1 together')):
      if not good:
        raise EagrlError(f'{field}={value} must be {fix}')
    for name in self.features or ():
      TABLE.require(name, 'SyntheticConfig.features')

  @property
  def defect_rates(self) -> tuple[float, ...]:
    """In the order of `DEFECTS`."""
    return self.unit_swap_rate, self.typo_rate, self.sentinel_rate, self.duplicate_rate

  @property
  def feature_ids(self) -> list[int]:
    """Rows of `TABLE` that the cohort keeps."""
    names = TABLE.names if self.features is None else self.features
    return [TABLE.require(name, 'SyntheticConfig.features') for name in names]

  @property
  def laws(self) -> Laws:
    return laws(self.site, self.stable_fraction)


@dataclasses.dataclass(frozen=True)
class Ledger:
  """Every defect that was put into a cohort's events."""

  kind: np.ndarray  # [D] int, position in DEFECTS
  row: np.ndarray  # [D] int, row of the cohort's event arrays; of a duplicate, the second copy
  clean: np.ndarray  # [D] float32, the value without the defect


@dataclasses.dataclass(frozen=True)
class _Block:
  """A run of consecutive patients, H hours from admission, over the whole `TABLE`."""

  state: Latents
  risk: np.ndarray  # [N]
  values: np.ndarray  # [N, H, F] in their units, NaN where not measured or not among the chosen features
  defect: np.ndarray  # [N, H, F] int, position in DEFECTS, -1 where none
  typo: np.ndarray  # [N, H, F] factor of a typing error at this place


def generate(config: SyntheticConfig, seed: int) -> Cohort:
  """Simulates a cohort with `truth` (causal salience, true risk).

  Patients without any measurement of the chosen features are left out and counted in `attrition`. Hours are whole
  and count from the patient's first record.

  Raises:
    EagrlError: nobody was measured.
  """
  return generate_with_ledger(config, seed)[0]


def generate_with_ledger(config: SyntheticConfig, seed: int) -> tuple[Cohort, Ledger]:
  """`generate`, and the list of all defects written into the events."""
  rows = []
  for block in _blocks(config, seed):
    salience = synthetic_salience.causal(
        block.state, _evidence(block).sum(1), config.laws, config.scale)[:, config.feature_ids]
    label = (block.state.label_draw < block.risk).astype(np.int8)
    rows.append((*_events(block, config.feature_ids), block.state.age.astype(np.float32), block.state.sex, label,
                 block.risk.astype(np.float32), salience))
  offset = np.cumsum([0] + [len(r[-1]) for r in rows])
  patient = np.concatenate([r[0] + o for r, o in zip(rows, offset)]).astype(np.int32)
  hour, feature, value, kind, clean, age, sex, label, risk, salience = (
      np.concatenate(column) for column in list(zip(*rows))[1:])
  defect = np.flatnonzero(kind >= 0)
  ledger = Ledger(kind[defect], defect, clean[defect])

  measured = np.bincount(patient, minlength=config.n) > 0
  if not measured.any():
    raise EagrlError('SyntheticConfig.features: no patient has a measurement of them; add a vital sign')
  cohort = Cohort(
      name=f'synthetic-{config.site}', task='mortality', setting='adults in an intensive care unit',
      features=TABLE.subset(config.feature_ids), subject_id=np.array([f'S{i:07d}' for i in range(config.n)]),
      age=age, sex=sex, label=label, patient=patient, hour=hour, feature=feature, value=value,
      attrition=(('simulated', config.n, 'patients'), ('without any measurement', int((~measured).sum()), 'patients')),
      truth=Truth(salience, risk))
  # Only rows without events go, so the order of events and the ledger's rows stay.
  return (cohort if measured.all() else cohort.take(np.flatnonzero(measured))), ledger


def counterfactual_salience(config: SyntheticConfig, seed: int) -> np.ndarray:
  """`synthetic_salience.counterfactual` for the patients of `generate(config, seed)`. `[N, F]`

  It costs a linear solve for each failing system of each patient, so it is not part of `generate`.
  """
  calibration = calibrate(config.hours, config.scale, config.prevalence)
  kept = []
  for block in _blocks(config, seed):
    salience = synthetic_salience.counterfactual(
        block.state, np.where(_evidence(block), block.values, np.nan), config.laws, config.scale, calibration)
    measured = (~np.isnan(block.values)).any((1, 2))
    kept.append(salience[measured][:, config.feature_ids])
  return np.concatenate(kept)


def _blocks(config: SyntheticConfig, seed: int) -> Iterator[_Block]:
  """Draws each patient's raw numbers from a counter-based stream of their own, then runs the model on a block."""
  law, hours, f = config.laws, config.hours, len(TABLE)
  calibration = calibrate(hours, config.scale, config.prevalence)
  panels = len(PANELS)
  normals, uniforms = draws(hours)
  chosen = np.isin(np.arange(f), config.feature_ids)
  edges = np.cumsum(config.defect_rates)
  for start in range(0, config.n, CHUNK):
    n = min(CHUNK, config.n - start)
    normal = np.empty((n, normals + panels + f + hours * f))
    uniform = np.empty((n, uniforms + hours * panels + hours * f))
    for row in range(n):
      rng = np.random.Generator(np.random.Philox(key=[seed % 2**64, start + row]))
      rng.standard_normal(out=normal[row])
      rng.random(out=uniform[row])
    own, propensity, level, hourly = np.split(normal, np.cumsum([normals, panels, f]), axis=1)
    ahead, chance, fault = np.split(uniform, np.cumsum([uniforms, hours * panels]), axis=1)
    chance, fault, hourly = (x.reshape(n, hours, -1) for x in (chance, fault, hourly))

    state = latents(own, ahead, hours)
    risk = sigmoid(calibration.intercept + log_odds(state, config.scale))
    observed = chosen & (chance[:, :, law.panel] < _rates(state, propensity, config.informative, law, calibration))
    kind = np.searchsorted(edges, fault, side='right')
    values = np.where(observed, _measure(state, level, hourly, law), np.nan)
    harmless = ((kind == UNIT_SWAP) & ~HAS_SECOND_UNIT) | ((kind == TYPO) & (values == 0))
    kind = np.where((kind == len(DEFECTS)) | harmless, -1, kind)
    typo = np.where(fault < edges[TYPO] - config.typo_rate / 2, 10.0, 100.0)
    yield _Block(state, risk, values, kind, typo)


def _measure(state: Latents, level: np.ndarray, hourly: np.ndarray, law: Laws) -> np.ndarray:
  """What a measurement would show at every hour. `level [N, F]`, `hourly [N, H, F]` standard normals `-> [N, H, F]`"""
  for child in np.flatnonzero(law.partner >= 0):
    shared, own = law.correlation[child], np.sqrt(1 - law.correlation[child] ** 2)
    for noise in (level, hourly):
      noise[..., child] = shared * noise[..., law.partner[child]] + own * noise[..., child]
  effect = np.repeat(law.effect[None], len(level), 0)
  effect[:, WHITE_CELLS] *= state.direction
  value = (law.median + effect[:, None] * state.severity[:, :, law.system]  # a nuisance effect is 0
           + (law.stable_sd * level)[:, None] + law.within_sd * hourly)
  value[..., law.log] = np.exp(value[..., law.log])
  value = np.clip(value, law.low, law.high)

  # Physiology ties these together; none but lymphocytes is on a log scale, so their medians are in their units.
  systolic, diastolic, mean, bicarbonate, co2, ph, neutrophils, lymphocytes = COUPLED
  value[..., diastolic] = np.minimum(value[..., diastolic], value[..., systolic] - 5)
  shift = value - law.median
  value[..., mean] = law.median[mean] + (shift[..., systolic] + 2 * shift[..., diastolic]) / 3 + 3 * hourly[..., mean]
  value[..., ph] = law.median[ph] + np.log10(  # Henderson-Hasselbalch, relative to the median patient
      value[..., bicarbonate] / law.median[bicarbonate] * law.median[co2] / value[..., co2])
  value[..., neutrophils] = np.minimum(value[..., neutrophils], 100 - value[..., lymphocytes])
  step = 10.0 ** law.decimals
  return np.round(np.clip(value, law.low, law.high) * step) / step


def _rates(state: Latents, propensity: np.ndarray, informative: float, law: Laws,
           calibration: Calibration) -> np.ndarray:
  """Probability of a measurement in each hour. The slope is set by the measured dead/alive ratio. `[N, H, F]`"""
  slope = np.log(law.rate_ratio) / (calibration.worst_gap * (1 - law.rate))
  excess = worst(state) - calibration.worst_mean
  typical = np.log(law.rate / (1 - law.rate)) + informative * slope * excess[..., None]
  # Averaging a logistic over N(0, sd²) flattens it by about this factor, taken out in advance.
  steeper = np.sqrt(1 + 0.346 * law.propensity_sd**2)
  return sigmoid(steeper * typical + (propensity[:, law.panel] * law.propensity_sd)[:, None])


def _evidence(block: _Block) -> np.ndarray:
  """Where a measurement tells anything: made, and not replaced by the missing-value code. `[N, H, F]` bool"""
  return ~np.isnan(block.values) & (block.defect != SENTINEL_CODE)


def _events(block: _Block, ids: list[int]) -> tuple[np.ndarray, ...]:
  """Flat events of a block: patient, hour, feature, value as recorded, defect kind, clean value."""
  table = block.values[:, :, ids]
  patient, hour, feature = np.nonzero(~np.isnan(table))
  clean = table[patient, hour, feature]
  kind, typo = block.defect[:, :, ids][patient, hour, feature], block.typo[:, :, ids][patient, hour, feature]
  scale, shift = SECOND_UNIT[np.array(ids)[feature]].T
  value = np.select([kind == UNIT_SWAP, kind == TYPO, kind == SENTINEL_CODE],
                    [(clean - shift) / scale, clean * typo, np.full_like(clean, SENTINEL)], clean)
  first = np.full(len(table), block.values.shape[1])
  np.minimum.at(first, patient, hour)

  copies = 1 + (kind == DUPLICATE)
  kept = np.full(int(copies.sum()), -1)
  kept[np.cumsum(copies) - 1] = kind  # of a duplicate, the second copy
  columns = patient, (hour - first[patient]).astype(np.float32), feature.astype(np.int16), value.astype(np.float32)
  return (*(np.repeat(x, copies) for x in columns), kept, np.repeat(clean.astype(np.float32), copies))
