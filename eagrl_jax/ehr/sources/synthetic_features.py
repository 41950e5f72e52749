"""The features of the synthetic cohort: what they measure, how organ failure moves them, how often they are sampled.

Medians, spreads, sampling rates and their dead/alive ratios were measured on open demo cohorts, first 24 h on an
hourly grid: the MIMIC-III demo (99 stays, site 'mimic') and the eICU demo (1,367 stays, site 'eicu'), both as packed
by YAIB under the ODbL. Two rows differ. They have no coma scale, so its spread and rate are those of PhysioNet 2012
set A (4,000 stays), for both sites, around the full score of 15. Lymphocytes are modelled on the log scale, because
their spread is as wide as their median; its log spread between patients is the MIMIC-III demo's. Effects a unit of
severity (0 to 4) follow the anchors of the SOFA score (JAMA 2016;315:801). Features with no system are nuisance.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from eagrl_jax.ehr.features import FeatureSpec, FeatureTable

SYSTEMS = ('respiratory', 'cardiovascular', 'inflammatory', 'renal', 'coagulation', 'hepatic', 'metabolic', 'neuro')
SITES = ('mimic', 'eicu')
SENTINEL = -999.0  # outside every hard range

# Features drawn together, and how much patients differ in how often that happens: sd of the log-odds of a measurement,
# from the same MIMIC-III demo (coma scale: PhysioNet 2012). Without it, counting measurements alone would tell
# how ill a patient is far better than in real wards.
PANELS = {
    'bedside': 2.0, 'lactate': 1.4, 'troponin': 0.9, 'ventilator': 1.45, 'blood gas': 1.35, 'chemistry': 0.0,
    'glucose': 0.6, 'urine output': 1.6, 'liver': 0.85, 'blood count': 0.0, 'clotting': 0.3, 'temperature': 0.65,
    'differential': 0.0, 'coma scale': 0.7}


@dataclasses.dataclass(frozen=True)
class SiteLaw:
  """How one site measures a feature: median in its unit, spreads on the model scale (log where `spec.log`)."""

  median: float
  between_sd: float  # patients, including their illness
  within_sd: float  # hour to hour in one patient
  rate: float  # probability of a measurement in an hour
  rate_ratio: float  # rate in those who die over rate in survivors


@dataclasses.dataclass(frozen=True)
class SyntheticFeature:
  """A feature and its place in the generative model.

  Attributes:
    system: organ system whose severity moves it, '' for a nuisance feature.
    effect: change on the model scale a unit of severity.
    panel: key of PANELS.
    partner, correlation: a feature whose patient level and hourly noise it shares. It shares none of the severity,
      so a correlated nuisance feature says nothing about the outcome by itself.
    sites: one law a site of `SITES`.
  """

  spec: FeatureSpec
  system: str
  effect: float
  panel: str
  sites: tuple[SiteLaw, ...]
  partner: str = ''
  correlation: float = 0.0


@dataclasses.dataclass(frozen=True)
class Laws:
  """The whole table at one site, as arrays over its features."""

  median: np.ndarray  # [F] on the model scale
  stable_sd: np.ndarray  # [F] between the patients' own levels, without illness, model scale
  within_sd: np.ndarray  # [F] model scale
  effect: np.ndarray  # [F] model scale, a unit of severity
  rate: np.ndarray  # [F]
  rate_ratio: np.ndarray  # [F]
  log: np.ndarray  # [F] bool
  system: np.ndarray  # [F] int, position in SYSTEMS, -1 for nuisance
  panel: np.ndarray  # [F] int, position in PANELS
  propensity_sd: np.ndarray  # [F] of the panel
  partner: np.ndarray  # [F] int, -1 where none
  correlation: np.ndarray  # [F]
  low: np.ndarray  # [F] least value a sensor reports, original unit
  high: np.ndarray  # [F]
  decimals: np.ndarray  # [F] int


def _row(name, unit, group, ref_low, ref_high, hard_low, hard_high, decimals, system, effect, panel, mimic, eicu, *,
         log=False, partner='', correlation=0.0, unit_alias=None, aliases=()) -> SyntheticFeature:
  spec = FeatureSpec(
      name=name, unit=unit, ref_low=ref_low, ref_high=ref_high, hard_low=hard_low, hard_high=hard_high, log=log,
      decimals=decimals, aliases=aliases, group=group, accepted_units=(unit_alias,) if unit_alias else (),
      sentinels=(SENTINEL,))
  return SyntheticFeature(spec, system, effect, panel, (SiteLaw(*mimic), SiteLaw(*eicu)), partner, correlation)


# Name, unit, group, reference range, hard range, decimals; system, effect, panel;
# for each site: median, between sd, within sd, hourly rate, dead/alive rate ratio.
FEATURES = (
    _row('heart rate', '/min', 'circulation', 60, 100, 0, 300, 0,
         'cardiovascular', 9, 'bedside', (85, 16.245, 7.388, 0.8937, 0.95), (83.5, 16.842, 6.474, 0.953, 1.03),
         aliases=('HR', 'pulse')),
    _row('systolic pressure', 'mmHg', 'circulation', 90, 120, 0, 300, 0,
         'cardiovascular', -12, 'bedside', (115, 16.92, 12.231, 0.8792, 0.97),
         (117, 18.099, 12.23, 0.8827, 1.08),
         aliases=('SBP', 'systolic blood pressure')),
    _row('diastolic pressure', 'mmHg', 'circulation', 60, 80, 0, 200, 0,
         'cardiovascular', -7.5, 'bedside', (58, 10.168, 8.298, 0.8788, 0.97), (63, 11.515, 8.085, 0.8827, 1.08),
         partner='systolic pressure', correlation=0.6, aliases=('DBP', 'diastolic blood pressure')),
    _row('mean arterial pressure', 'mmHg', 'circulation', 70, 100, 0, 250, 0,
         'cardiovascular', -9, 'bedside', (75, 9.867, 9.522, 0.8836, 0.95), (79, 12.68, 9.075, 0.8842, 1.08),
         aliases=('MAP', 'MBP', 'mean blood pressure')),
    _row('lactate', 'mmol/L', 'circulation', 0.5, 2, 0, 50, 1,
         'cardiovascular', 0.45, 'lactate', (2.1, 0.573, 0.271, 0.0485, 1.41), (1.8, 0.62, 0.26, 0.019, 2.56),
         log=True, unit_alias=('mg/dL', 0.111012, 0.0), aliases=('lactic acid',)),
    _row('troponin T', 'ng/mL', 'circulation', 0, 0.014, 0, 100, 3,
         'cardiovascular', 0.9, 'troponin', (0.08, 1.58, 0.206, 0.023, 0.79), (0.11, 1.745, 0.197, 0.0031, 2.85),
         log=True, aliases=('troponin',)),
    _row('respiratory rate', '/min', 'respiration', 12, 20, 0, 120, 0,
         'respiratory', 3, 'bedside', (19, 4.905, 3.491, 0.8764, 0.98), (19, 4.862, 2.505, 0.8504, 1.06),
         aliases=('RR',)),
    _row('oxygen saturation', '%', 'respiration', 95, 100, 50, 100, 0,
         'respiratory', -1.6, 'bedside', (98, 1.891, 2.334, 0.8703, 0.98), (97, 2.236, 1.479, 0.8959, 1.07),
         aliases=('SpO2', 'O2 saturation')),
    _row('FiO2', '%', 'respiration', 21, 21, 21, 100, 0,
         'respiratory', 15, 'ventilator', (50, 15.599, 9.093, 0.1099, 1.19), (40, 19.637, 5.901, 0.1217, 2.41),
         unit_alias=('1', 100.0, 0.0), aliases=('fraction of inspired oxygen',)),
    _row('pO2', 'mmHg', 'respiration', 75, 100, 40, 600, 0,
         'respiratory', -0.12, 'blood gas', (122, 0.429, 0.387, 0.0764, 1.81), (95, 0.405, 0.262, 0.0316, 2.1),
         log=True, aliases=('PaO2', 'O2 partial pressure')),
    _row('pCO2', 'mmHg', 'respiration', 35, 45, 10, 150, 0,
         '', 0, 'blood gas', (39, 13.958, 4.243, 0.0788, 1.81), (40, 12.378, 4.583, 0.0317, 2.11),
         partner='bicarbonate', correlation=0.8, aliases=('PaCO2', 'CO2 partial pressure')),
    _row('pH', '', 'metabolism', 7.35, 7.45, 6.8, 8, 2,
         'metabolic', -0.04, 'blood gas', (7.37, 0.083, 0.046, 0.0812, 1.82), (7.37, 0.084, 0.048, 0.0319, 2.1),
         aliases=('arterial pH',)),
    _row('base excess', 'mEq/L', 'metabolism', -2, 2, -25, 25, 1,
         'metabolic', -3, 'blood gas', (-1, 5.483, 1.681, 0.0788, 1.81), (-0.3, 6.114, 1.414, 0.0258, 2.24),
         aliases=('BE',)),
    _row('bicarbonate', 'mEq/L', 'metabolism', 22, 28, 5, 50, 0,
         'metabolic', -2.2, 'chemistry', (23, 5.017, 1.077, 0.084, 1.08), (24, 4.838, 1.414, 0.0605, 1.15),
         aliases=('HCO3',)),
    _row('glucose', 'mg/dL', 'metabolism', 70, 140, 0, 1000, 0,
         '', 0, 'glucose', (132.5, 0.321, 0.155, 0.101, 1.1), (137, 0.314, 0.17, 0.1822, 1.32),
         log=True, unit_alias=('mmol/L', 18.016, 0.0), aliases=('blood sugar',)),
    _row('creatinine', 'mg/dL', 'kidney', 0.6, 1.3, 0, 15, 1,
         'renal', 0.45, 'chemistry', (1.1, 0.621, 0.094, 0.0857, 1.09), (1.09, 0.645, 0.092, 0.0636, 1.25),
         log=True, unit_alias=('umol/L', 0.01131, 0.0)),
    _row('urea nitrogen', 'mg/dL', 'kidney', 8, 20, 0, 200, 0,
         'renal', 0.4, 'chemistry', (26, 0.668, 0.081, 0.0853, 1.09), (21, 0.68, 0.094, 0.0636, 1.25),
         log=True, unit_alias=('mmol/L', 2.8011, 0.0), aliases=('BUN', 'blood urea nitrogen')),
    _row('urine output', 'mL/h', 'kidney', 30, 150, 0, 2000, 0,
         'renal', -0.55, 'urine output', (60, 1.659, 0.669, 0.6364, 0.87), (110, 2.212, 0.561, 0.2082, 1.11),
         log=True, aliases=('urine',)),
    _row('phosphate', 'mg/dL', 'kidney', 2.5, 4.5, 0, 40, 1,
         'renal', 0.2, 'chemistry', (3.5, 0.338, 0.108, 0.0735, 1.22), (3.1, 0.427, 0.178, 0.0198, 1.42),
         log=True, unit_alias=('mmol/L', 3.0974, 0.0), aliases=('phosphorus',)),
    _row('sodium', 'mEq/L', 'electrolytes', 136, 145, 110, 165, 0,
         '', 0, 'chemistry', (140, 6.129, 1.414, 0.0848, 1.04), (139, 5.35, 1.414, 0.0685, 1.3),
         aliases=('Na',)),
    _row('potassium', 'mEq/L', 'electrolytes', 3.5, 5, 0, 10, 1,
         '', 0, 'chemistry', (3.9, 0.626, 0.265, 0.0877, 1.05), (4, 0.601, 0.285, 0.0729, 1.25),
         partner='creatinine', correlation=0.6, aliases=('K',)),
    _row('chloride', 'mEq/L', 'electrolytes', 98, 106, 80, 130, 0,
         '', 0, 'chemistry', (107, 7.391, 1.414, 0.082, 0.97), (105, 6.428, 1.414, 0.0636, 1.31),
         partner='bicarbonate', correlation=-0.6, aliases=('Cl',)),
    _row('calcium', 'mg/dL', 'electrolytes', 8.6, 10.2, 4, 20, 1,
         '', 0, 'chemistry', (8.2, 0.67, 0.222, 0.0731, 1.23), (8.2, 0.781, 0.212, 0.0621, 1.27),
         partner='albumin', correlation=0.6, unit_alias=('mmol/L', 4.008, 0.0), aliases=('Ca',)),
    _row('magnesium', 'mg/dL', 'electrolytes', 1.6, 2.6, 0.5, 5, 1,
         '', 0, 'chemistry', (2, 0.376, 0.153, 0.08, 1.06), (2, 0.386, 0.212, 0.0338, 1.25),
         unit_alias=('mmol/L', 2.4305, 0.0), aliases=('Mg',)),
    _row('bilirubin', 'mg/dL', 'liver', 0.2, 1.2, 0, 100, 1,
         'hepatic', 0.65, 'liver', (1.1, 1.256, 0.145, 0.0214, 2.64), (0.6, 0.894, 0.171, 0.022, 1.49),
         log=True, unit_alias=('umol/L', 0.05848, 0.0), aliases=('total bilirubin',)),
    _row('albumin', 'g/dL', 'liver', 3.5, 5, 0, 6, 1,
         'hepatic', -0.25, 'liver', (2.9, 0.698, 0.1, 0.0166, 1.54), (2.8, 0.681, 0.141, 0.0261, 1.39),
         unit_alias=('g/L', 0.1, 0.0)),
    _row('AST', 'U/L', 'liver', 10, 40, 0, 20000, 0,
         'hepatic', 0.9, 'liver', (57, 1.28, 0.161, 0.0218, 2.76), (34, 1.082, 0.154, 0.0232, 1.41),
         log=True, aliases=('aspartate aminotransferase',)),
    _row('ALT', 'U/L', 'liver', 7, 40, 0, 20000, 0,
         'hepatic', 0.9, 'liver', (32.5, 1.323, 0.125, 0.0218, 2.76), (30, 1.001, 0.094, 0.0226, 1.45),
         log=True, aliases=('alanine aminotransferase',)),
    _row('platelets', 'K/uL', 'blood', 150, 450, 5, 1200, 0,
         'coagulation', -0.45, 'blood count', (197.5, 0.552, 0.088, 0.0784, 1.26), (184, 0.484, 0.077, 0.0514, 1.17),
         log=True, aliases=('platelet count',)),
    _row('INR', '', 'blood', 0.8, 1.2, 0.5, 20, 1,
         'coagulation', 0.22, 'clotting', (1.5, 0.421, 0.063, 0.0651, 1.27), (1.3, 0.384, 0.057, 0.0189, 1.66),
         log=True, aliases=('international normalized ratio',)),
    _row('PTT', 's', 'blood', 25, 35, 5, 250, 0,
         'coagulation', 0.2, 'clotting', (38.5, 0.375, 0.112, 0.0695, 1.36), (34.5, 0.37, 0.131, 0.0147, 2.18),
         log=True, aliases=('partial thromboplastin time',)),
    _row('hemoglobin', 'g/dL', 'blood', 12, 17.5, 4, 18, 1,
         '', 0, 'blood count', (10, 1.341, 0.424, 0.0731, 1.19), (10.4, 2.204, 0.554, 0.0623, 1.23),
         unit_alias=('g/L', 0.1, 0.0), aliases=('haemoglobin', 'Hb')),
    _row('white cell count', 'K/uL', 'inflammation', 4, 11, 0, 500, 1,
         'inflammatory', 0.35, 'blood count', (10.5, 0.574, 0.136, 0.0747, 1.19), (10.8, 0.59, 0.136, 0.0516, 1.17),
         log=True, aliases=('WBC', 'white blood cell count', 'leukocytes')),
    _row('temperature', 'degC', 'inflammation', 36.1, 37.2, 32, 42, 1,
         'inflammatory', 0.6, 'temperature', (36.778, 0.661, 0.494, 0.3042, 1.13),
         (36.789, 0.582, 0.316, 0.2852, 1.19),
         unit_alias=('degF', 0.555556, -17.777778), aliases=('body temperature',)),
    _row('neutrophils', '%', 'inflammation', 40, 70, 0, 100, 0,
         'inflammatory', 2.5, 'differential', (83.45, 15.214, 5.975, 0.0202, 1.31), (79.9, 15.318, 3.642, 0.0279, 1.13),
         aliases=('neutrophil %',)),
    _row('lymphocytes', '%', 'inflammation', 20, 40, 0, 100, 0,
         'inflammatory', -0.55, 'differential', (8.25, 0.804, 0.291, 0.0202, 1.31), (9, 0.804, 0.236, 0.0304, 1.19),
         log=True, aliases=('lymphocyte %',)),
    _row('Glasgow coma scale', '', 'neurology', 15, 15, 3, 15, 0,
         'neuro', -2.6, 'coma scale', (15, 3.255, 1.564, 0.318, 1.05), (15, 3.255, 1.564, 0.318, 1.05),
         aliases=('GCS', 'coma scale')),
)

TABLE = FeatureTable(tuple(f.spec for f in FEATURES))
WHITE_CELLS = TABLE.require('white cell count', 'WHITE_CELLS')  # infection raises it in most, lowers it in some

# Twenty that are measured often enough to reason about: 14 causal ones over all eight systems, 6 nuisance
# (potassium and chloride correlated with creatinine and bicarbonate).
DEFAULT_FEATURES = (
    'heart rate', 'mean arterial pressure', 'lactate', 'respiratory rate', 'oxygen saturation', 'FiO2', 'pH',
    'bicarbonate', 'glucose', 'creatinine', 'sodium', 'potassium', 'chloride', 'magnesium', 'bilirubin', 'platelets',
    'hemoglobin', 'white cell count', 'temperature', 'Glasgow coma scale')


@functools.cache
def laws(site: str, stable_fraction: float) -> Laws:
  """The table as arrays for a site of `SITES`.

  Args:
    stable_fraction: share of the variance between patients that is their own level and not their illness.
  """
  at = [f.sites[SITES.index(site)] for f in FEATURES]
  log = np.array([f.spec.log for f in FEATURES])
  decimals = np.array([f.spec.decimals for f in FEATURES])
  low = np.array([f.spec.hard_low for f in FEATURES], float)
  median = np.array([s.median for s in at], float)
  return Laws(
      median=np.where(log, np.log(median, where=log, out=np.zeros_like(median)), median),
      stable_sd=np.sqrt(stable_fraction) * np.array([s.between_sd for s in at]),
      within_sd=np.array([s.within_sd for s in at]),
      effect=np.array([f.effect for f in FEATURES], float),
      rate=np.array([s.rate for s in at]),
      rate_ratio=np.array([s.rate_ratio for s in at]),
      log=log,
      system=np.array([SYSTEMS.index(f.system) if f.system else -1 for f in FEATURES]),
      panel=np.array([list(PANELS).index(f.panel) for f in FEATURES]),
      propensity_sd=np.array([PANELS[f.panel] for f in FEATURES]),
      partner=np.array([TABLE.require(f.partner, 'partner') if f.partner else -1 for f in FEATURES]),
      correlation=np.array([f.correlation for f in FEATURES]),
      # A skewed assay reports at least one step of its precision, never zero.
      low=np.where(log, np.maximum(low, 10.0 ** -decimals), low),
      high=np.array([f.spec.hard_high for f in FEATURES], float),
      decimals=decimals)
