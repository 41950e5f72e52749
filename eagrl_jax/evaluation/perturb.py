"""What is done to the records of a robustness test; records in, records out.

    order   lines of the prompt and channels of the expert change places       level: share of the features
    noise   Gaussian noise on every value                                      level: train standard deviations
    drop    features are left out                                              level: share of the patient's features
    units   values in another unit, of which nobody was told                   level: share of the features

Everything is a function of (seed, kind, patient), of `units` of (seed, kind): a site writes a feature in one unit. A
higher level goes on where a lower one stopped (the same features and more, the same noise times more), so levels are
compared on the same ground. Labels are not an argument.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from eagrl_jax import rng
from eagrl_jax.ehr import channels
from eagrl_jax.ehr.features import FeatureTable
from eagrl_jax.ehr.normalise import Statistics
from eagrl_jax.types import EagrlError

WORDS = {'order': 'share of the features that change places', 'noise': 'train standard deviations',
         'drop': "share of the patient's features left out", 'units': 'share of the features in another unit'}
KINDS = (*WORDS, 'wording')  # of `wording` the records stay, see `ehr.prompt`
FACTOR = 10.0  # of a feature without another unit in its spec


def order(rows: np.ndarray, n_features: int, level: float, seed: int) -> np.ndarray:
  """A permutation for each patient: `level` of the features, at least two, move on one random cycle, so each moves.

  Position i holds feature `[n, i]`. `rows [n]` identify the patients. `-> [n, F]`
  """
  out, chosen = np.tile(np.arange(n_features), (len(rows), 1)), max(2, round(level * n_features)) if level else 0
  for line, row in zip(out, rows):
    moved = rng.host(seed, 'order', int(row)).permutation(n_features)[:chosen]
    line[moved] = np.roll(moved, -1)
  return out


def noise(values: np.ndarray, rows: np.ndarray, features: FeatureTable, statistics: Statistics, level: float,
          seed: int) -> np.ndarray:
  """Adds noise of `level` train standard deviations, on the log1p scale where a feature is modelled on it.

  Results stay within the hard range, and words of an ordinal feature are the nearest one's. A feature that does not
  vary in train has no noise. `values [n, T, F]`, NaN stays. `-> [n, T, F]` float32
  """
  std = np.where(np.isin(statistics.names, statistics.flat), 0.0, statistics.std.astype(np.float64))
  draws = np.stack([rng.host(seed, 'noise', int(row)).standard_normal(values.shape[1:]) for row in rows])
  x = values.astype(np.float64)
  scaled = np.where(statistics.log, np.log1p(np.maximum(x, 0)), x) + level * std * draws
  out = np.where(statistics.log, np.maximum(np.expm1(scaled), 0), scaled)
  for f, spec in enumerate(features):
    if spec.hard_low is not None or spec.hard_high is not None:
      out[..., f] = np.clip(out[..., f], spec.hard_low, spec.hard_high)
    if spec.levels:
      known = np.array([value for value, _ in spec.levels])
      seen = np.isfinite(out[..., f])
      out[seen, f] = known[channels.nearest(spec, out[seen, f])]
  return out.astype(np.float32)


def drop(values: np.ndarray, rows: np.ndarray, level: float, seed: int) -> np.ndarray:
  """Leaves out `level` of the features that each patient has. `[n, T, F] -> [n, T, F]`, NaN where left out."""
  out = values.copy()
  for record, row in zip(out, rows):
    present = np.flatnonzero(np.isfinite(record).any(0))
    shuffled = rng.host(seed, 'drop', int(row)).permutation(present)
    record[:, shuffled[:round(level * len(present))]] = np.nan
  return out


def units(values: np.ndarray, features: FeatureTable, level: float, seed: int, censor: np.ndarray | None = None
          ) -> tuple[np.ndarray, np.ndarray | None, dict[str, int]]:
  """Writes `level` of the numeric features in another unit: one that the spec knows, else ten times the value.

  What leaves the hard range goes missing, as it does when a source is read. A limit is one in any unit.

  Returns:
    `[n, T, F]` float32; the signs of `censor [n, T, F]` in the new units, None as it was; how many features changed by
    their spec and by the factor, and how many values went missing.
  """
  numeric = np.array([f for f, spec in enumerate(features) if not spec.levels], int)
  chosen = rng.host(seed, 'units').permutation(numeric)[:round(level * len(numeric))]
  out, signs = values.astype(np.float64), None if censor is None else censor.copy()
  known = 0
  for f in chosen:
    spec = features[int(f)]
    other = next(((scale, offset) for _, scale, offset in spec.accepted_units if (scale, offset) != (1, 0)), None)
    known += other is not None
    scale, offset = other or (1 / FACTOR, 0.0)
    x = (out[..., f] - offset) / scale
    low = -np.inf if spec.hard_low is None else spec.hard_low
    high = np.inf if spec.hard_high is None else spec.hard_high
    out[..., f] = np.where((x >= low) & (x <= high), x, np.nan)
    if signs is not None:
      signs[..., f] = np.where(np.isnan(out[..., f]), 0, np.sign(scale) * signs[..., f])
  lost = int(np.isfinite(values).sum() - np.isfinite(out).sum())
  return out.astype(np.float32), signs, {'features_by_spec': known, 'features_times_ten': len(chosen) - known,
                                         'values_out_of_range': lost}


def only(values: np.ndarray, kept: np.ndarray) -> np.ndarray:
  """The record with the features of `kept [n, F]` alone. `[n, T, F] -> [n, T, F]`, NaN elsewhere."""
  return np.where(kept[:, None], values, np.nan).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Condition:
  """The records of n patients as one test shows them."""

  kind: str
  level: float
  values: np.ndarray  # [n, T, F], NaN where not measured
  censor: np.ndarray | None = None  # [n, T, F] their signs, as of `Visits`; None: the patients' own where values are
  order: np.ndarray | None = None  # [n, F]; None: the table's
  wording: str = 'standard'
  draw: int = 0  # which random draws an answer is made with; 0 wherever a condition is compared with another
  detail: dict[str, int] = dataclasses.field(default_factory=dict)


def conditions(kinds: tuple[str, ...], levels: Mapping[str, tuple[float, ...]], values: np.ndarray, rows: np.ndarray,
               features: FeatureTable, statistics: Statistics, seed: int, censor: np.ndarray | None = None
               ) -> list[Condition]:
  """The records as they are, the same with other random draws (what chance alone changes), then every kind and level.

  Args:
    values: `[n, T, F]`. rows: `[n]`, identities of the patients. censor: `[n, T, F]` as of `Visits`.
  """
  out = [Condition('none', 0.0, values), Condition('sampling', 0.0, values, draw=1)]
  for kind in kinds:
    for level in levels.get(kind, ()):
      if kind == 'order':
        out.append(Condition(kind, level, values, order=order(rows, len(features), level, seed)))
      elif kind == 'noise':
        out.append(Condition(kind, level, noise(values, rows, features, statistics, level, seed)))
      elif kind == 'drop':
        out.append(Condition(kind, level, drop(values, rows, level, seed)))
      else:
        changed, signs, detail = units(values, features, level, seed, censor)
        out.append(Condition(kind, level, changed, signs, detail=detail))
    if kind == 'wording':
      out.append(Condition(kind, 1.0, values, wording='rephrased'))
  return out


def check(kinds: tuple[str, ...], levels: Mapping[str, tuple[float, ...]]) -> None:
  """Refuses a kind that there is not, or a level that its kind cannot have.

  Raises:
    EagrlError: names the field.
  """
  for kind in kinds:
    if kind not in KINDS:
      raise EagrlError(f'robustness.kinds holds {kind!r}; choose among {", ".join(KINDS)}')
  if len(set(kinds)) < len(kinds):
    raise EagrlError(f'robustness.kinds={tuple(kinds)} holds one kind twice; name each once')
  for kind, chosen in levels.items():
    if len(set(chosen)) < len(chosen):
      raise EagrlError(f'robustness.levels.{kind}={tuple(chosen)} holds one level twice; give each once')
    for level in chosen:
      # Without a single feature there is no record, so `drop` stops short of 1.
      if not 0 < level < float('inf') or (kind != 'noise' and level > 1) or (kind == 'drop' and level == 1):
        room = {'noise': 'above 0', 'drop': 'above 0 and below 1'}.get(kind, 'above 0 and at most 1')
        raise EagrlError(f'robustness.levels.{kind} holds {level}: give the {WORDS[kind]}, {room}')
