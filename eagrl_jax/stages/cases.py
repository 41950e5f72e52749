"""The few patients that the report shows in full. Patient-level content: never logged."""

from __future__ import annotations

import numpy as np

from eagrl_jax.stages.data import Data


def choose(prob: np.ndarray, label: np.ndarray, n: int) -> np.ndarray:
  """Up to n test patients: the clearest hit, the clearest miss, then the most undecided."""
  error = np.abs(label - prob)
  order = np.argsort(error, kind='stable')
  middle = np.argsort(np.abs(prob - 0.5), kind='stable')
  wanted = [order[0], order[-1], *middle]
  return np.array(list(dict.fromkeys(int(i) for i in wanted))[:n])


def build(data: Data, rows: np.ndarray, shown: np.ndarray, arms: dict, salience: np.ndarray) -> list[dict]:
  """The content of cases.json; numbered, without identifiers."""
  out = []
  for number, i in enumerate(shown, 1):
    row = rows[i]
    real = data.visits.valid[row]
    values = data.visits.values[row][real]
    features = []
    for f, spec in enumerate(data.cohort.features):
      if np.isnan(values[:, f]).all():
        continue
      features.append({
          'name': spec.name, 'unit': spec.unit, 'ref_low': spec.ref_low, 'ref_high': spec.ref_high,
          'values': [None if np.isnan(v) else round(float(v), spec.decimals) for v in values[:, f]],
          'salience': float(salience[row, f]), 'attention': float(arms['rl'].attention[i, f])})
    out.append({
        'label': f'case {number}', 'n_visits': int(real.sum()), 'hours': data.visits.hours[row][real].tolist(),
        'features': features, 'answers': {name: arm.text[i] for name, arm in arms.items()},
        'probabilities': {name: float(arm.prob[i]) for name, arm in arms.items()},
        'outcome': int(data.cohort.label[row])})
  return out
