"""Who gets ill, how the illness develops, and who dies: the part of a synthetic patient that no chart shows.

A patient has one to three failing organ systems out of eight. Each has a severity between 0 and 4, in the manner of the
SOFA score, that improves, stays or worsens. The log-odds of death add up the recent severity of the failing systems.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from eagrl_jax.ehr.sources.synthetic_features import SYSTEMS

HALF_LIFE = 12.0  # hours after which a severity counts half
MAX_SEVERITY = 4.0
PERSISTENCE = float(np.exp(-1 / 12))  # hour-to-hour autocorrelation of the fluctuation
ACTIVE_SD, QUIET_SD = 0.3, 0.15  # stationary sd of the fluctuation
AGE_WEIGHT = 0.4
CARDIORENAL = 0.3  # interaction of circulation and kidney
CARDIO, RENAL = SYSTEMS.index('cardiovascular'), SYSTEMS.index('renal')

# In the order of SYSTEMS.
WEIGHT = np.array([1.1, 1.2, 0.9, 0.8, 0.8, 0.7, 1.0, 1.2])  # log-odds a unit of severity
FREQUENCY = np.array([0.30, 0.25, 0.25, 0.20, 0.15, 0.10, 0.15, 0.15])
AGE_TILT = np.array([0.1, 0.2, 0.0, 0.2, 0.0, -0.2, 0.0, 0.1])  # log-frequency a sd of age
COMORBIDITY_TILT = np.array([0.0, 0.1, 0.0, 0.1, 0.0, 0.1, 0.1, 0.0])  # log-frequency a comorbidity

# Poisson(1.2), cumulative; the tail beyond six is folded into six.
COMORBIDITY_CDF = np.array([0.3012, 0.6626, 0.8795, 0.9662, 0.9923, 0.9985])

CALIBRATION_PATIENTS = 20_000
CALIBRATION_KEY = 0x5EED  # not a user's seed: every cohort shares one calibration sample


@dataclasses.dataclass(frozen=True)
class Latents:
  """The hidden state of N patients over H hours and K systems."""

  age: np.ndarray  # [N] years
  sex: np.ndarray  # [N] int8, 1 male
  active: np.ndarray  # [N, K] bool, the failing systems
  severity: np.ndarray  # [N, H, K]; active ones in 0..4, quiet ones near 0
  burden: np.ndarray  # [N, K] recent severity of the active systems, 0 for the others
  direction: np.ndarray  # [N] ±1, whether infection raises or lowers this patient's white cells
  label_draw: np.ndarray  # [N] uniform


def draws(hours: int) -> tuple[int, int]:
  """How many standard normals and uniforms `latents` needs for one patient."""
  k = len(SYSTEMS)
  return 1 + hours * k, 5 + 5 * k


def recency_weights(hours: int) -> np.ndarray:
  """Weights of each hour before the prediction time, which is the end of the last one. `[H]`, sum 1."""
  weight = 0.5 ** (np.arange(hours)[::-1] / HALF_LIFE)
  return weight / weight.sum()


def latents(normal: np.ndarray, uniform: np.ndarray, hours: int) -> Latents:
  """Turns raw draws into patients.

  Args:
    normal: [N, 1 + H*K] standard normals.
    uniform: [N, 5 + 5*K] uniforms on [0, 1).
  """
  n, k = len(normal), len(SYSTEMS)
  age = np.round(np.clip(64 + 16 * normal[:, 0], 18, 90))
  sex, comorbid, count, direction, label_draw = uniform[:, :5].T
  race, course, speed, onset_a, onset_b = np.moveaxis(uniform[:, 5:].reshape(n, 5, k), 1, 0)  # [N, K] each
  comorbidities = np.searchsorted(COMORBIDITY_CDF, comorbid, side='right')

  # Systems fail in the order of an exponential race, which is weighted sampling without replacement.
  age_z, extra = (age[:, None] - 64) / 16, comorbidities[:, None] - 1.2
  frequency = FREQUENCY * np.exp(AGE_TILT * age_z + COMORBIDITY_TILT * extra)
  rank = np.argsort(np.argsort(-np.log1p(-race) / frequency, axis=1), axis=1)
  failing = 1 + (count < 0.60 + 0.05 * extra[:, 0]) + (count < 0.22 + 0.05 * extra[:, 0])
  active = rank < failing[:, None]

  # Onset ~ Gamma(2, 0.7); improving 45 %, stable 30 %, worsening 25 %.
  onset = -0.7 * (np.log1p(-onset_a) + np.log1p(-onset_b))
  drift = np.select([course < 0.45, course < 0.75], [-1.0, 0.0], 1.0) * (0.01 + 0.03 * speed)
  noise = normal[:, 1:].reshape(n, hours, k)
  fluctuation = np.empty_like(noise)
  fluctuation[:, 0] = noise[:, 0]
  for t in range(1, hours):
    fluctuation[:, t] = PERSISTENCE * fluctuation[:, t - 1] + np.sqrt(1 - PERSISTENCE**2) * noise[:, t]
  course_of_illness = onset[:, None] + drift[:, None] * np.arange(hours)[:, None] + ACTIVE_SD * fluctuation
  severity = np.where(active[:, None], np.clip(course_of_illness, 0, MAX_SEVERITY), QUIET_SD * fluctuation)

  burden = np.where(active, np.einsum('h,nhk->nk', recency_weights(hours), severity), 0)
  return Latents(age, (sex < 0.57).astype(np.int8), active, severity, burden,
                 np.where(direction < 0.85, 1.0, -1.0), label_draw)


def contributions(state: Latents, scale: float) -> np.ndarray:
  """Log-odds that each system adds; the interaction is shared equally by its two systems. `[N, K]`"""
  parts = WEIGHT * state.burden
  shared = CARDIORENAL / 2 * state.burden[:, CARDIO] * state.burden[:, RENAL]
  parts[:, CARDIO] += shared
  parts[:, RENAL] += shared
  return scale * parts


def log_odds(state: Latents, scale: float) -> np.ndarray:
  """η without its intercept. `[N]`"""
  return scale * AGE_WEIGHT * (state.age - 64) / 16 + contributions(state, scale).sum(1)


def sigmoid(x: np.ndarray) -> np.ndarray:
  return 0.5 * (1 + np.tanh(0.5 * x))


def worst(state: Latents) -> np.ndarray:
  """Severity of the worst failing system, what makes staff measure more often. `[N, H]`"""
  return np.where(state.active[:, None], state.severity, 0).max(2)


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Population constants of a setting, from a fixed sample that no cohort's size or seed changes."""

  intercept: float  # β0 that gives the wanted prevalence
  worst_mean: float  # of `worst`, over patients and hours
  worst_gap: float  # its mean in those who die minus its mean in survivors
  severity_cov: np.ndarray  # [H, H] of an active system


@functools.lru_cache(maxsize=16)
def calibrate(hours: int, scale: float, prevalence: float) -> Calibration:
  """Solves β0 by bisection on `CALIBRATION_PATIENTS` simulated patients; cached in the process."""
  rng = np.random.Generator(np.random.Philox(key=CALIBRATION_KEY))
  normals, uniforms = draws(hours)
  blocks = [latents(rng.standard_normal((1000, normals)), rng.random((1000, uniforms)), hours)
            for _ in range(CALIBRATION_PATIENTS // 1000)]
  eta = np.concatenate([log_odds(b, scale) for b in blocks])
  low, high = -100.0, 100.0
  for _ in range(80):
    middle = (low + high) / 2
    low, high = (middle, high) if sigmoid(eta + middle).mean() < prevalence else (low, middle)
  risk = sigmoid(eta + low)
  hourly = np.concatenate([worst(b).mean(1) for b in blocks])
  gap = np.average(hourly, weights=risk) - np.average(hourly, weights=1 - risk)
  ill = np.concatenate([b.severity.transpose(0, 2, 1)[b.active] for b in blocks[:5]])
  return Calibration(low, float(hourly.mean()), float(gap), np.cov(ill, rowvar=False))
