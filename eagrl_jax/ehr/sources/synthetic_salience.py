"""Which measured features carry a synthetic patient's risk: the ground truth that experts and policies are scored on.

Both definitions give a nuisance or never-measured feature exactly 0 and scale each patient's row to sum to 1.
"""

from __future__ import annotations

import numpy as np

from eagrl_jax.ehr.sources.synthetic_features import SYSTEMS, WHITE_CELLS, Laws
from eagrl_jax.ehr.sources.synthetic_outcome import Calibration, Latents, contributions, recency_weights


def normalised(weight: np.ndarray) -> np.ndarray:
  """Rows scaled to sum to 1, rows of zeros kept. `[N, F] -> [N, F] float32`"""
  total = weight.sum(1, keepdims=True)
  return (weight / np.where(total > 0, total, 1)).astype(np.float32)


def causal(state: Latents, counts: np.ndarray, laws: Laws, scale: float) -> np.ndarray:
  """Each system's log-odds, split over its features by what their measurements tell about its severity.

  n measurements of a feature have Fisher information λ² / (σ_b² + σ_w² / n): the hourly noise averages out,
  the patient's own level does not. An unmeasured system's share goes to nobody.

  Args:
    counts: [N, F] number of measurements.

  Returns:
    [N, F] float32.
  """
  variance = laws.stable_sd**2 + laws.within_sd**2 / np.maximum(counts, 1)
  information = np.where(counts > 0, laws.effect**2 / variance, 0)  # [N, F]
  member = laws.system[:, None] == np.arange(len(SYSTEMS))  # [F, K]
  total = information @ member
  share = contributions(state, scale) / np.where(total > 0, total, 1)  # [N, K]
  return normalised(information * (share @ member.T))


def counterfactual(state: Latents, values: np.ndarray, laws: Laws, scale: float,
                   calibration: Calibration) -> np.ndarray:
  """How far the oracle's log-odds move if a feature's measurements are replaced by a healthy patient's, in expectation.

  The oracle knows which systems fail and takes the Gaussian posterior mean of their recent severity given every
  measurement, on the model scale, where the mean is linear in the data: replacing feature f changes it by the part
  of the sum that runs over f's own measurements. Prior moments come from the calibration sample; the noise of
  different features counts as independent.

  Args:
    values: [N, H, F] measurements in their units, NaN where none.

  Returns:
    [N, F] float32.
  """
  n, hours, features = values.shape
  burden_of = recency_weights(hours) @ calibration.severity_cov  # [H] cov(recent severity, severity at t)
  per_unit = contributions(state, scale) / np.where(state.burden > 0, state.burden, 1)  # [N, K] log-odds a unit
  weight = np.zeros((n, features))
  for i in range(n):
    for k in np.flatnonzero(state.active[i]):
      t, f = np.nonzero(~np.isnan(values[i]) & (laws.system == k))
      if not len(t):
        continue
      value = values[i, t, f]
      deviation = np.where(laws.log[f], np.log(np.where(laws.log[f], value, 1)), value) - laws.median[f]
      effect = laws.effect[f] * np.where(f == WHITE_CELLS, state.direction[i], 1)
      same = f[:, None] == f
      covariance = (np.outer(effect, effect) * calibration.severity_cov[np.ix_(t, t)]
                    + same * laws.stable_sd[f] ** 2 + np.diag(laws.within_sd[f] ** 2))
      gain = np.linalg.solve(covariance, effect * burden_of[t])
      weight[i] += abs(per_unit[i, k]) * np.abs(np.bincount(f, gain * deviation, features))
  return normalised(weight)
