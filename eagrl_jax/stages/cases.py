"""The few patients that the report shows in full. Patient-level content: never logged."""

from __future__ import annotations

import numpy as np

from eagrl_jax import mesh as mesh_lib
from eagrl_jax.ehr import prompt
from eagrl_jax.ehr.features import FeatureSpec
from eagrl_jax.rl.reading import read_layers
from eagrl_jax.stages import settings
from eagrl_jax.stages.context import Context
from eagrl_jax.stages.data import Data
from eagrl_jax.stages.encode import Encoder, pad_answers, parse_rollout
from eagrl_jax.stages.policy import Policy
from eagrl_jax.train import processes
from eagrl_jax.types import Rollout


def choose(prob: np.ndarray, label: np.ndarray, n: int) -> np.ndarray:
  """Up to n test patients: the clearest hit, the clearest miss, then the most undecided."""
  error = np.abs(label - prob)
  order = np.argsort(error, kind='stable')
  middle = np.argsort(np.abs(prob - 0.5), kind='stable')
  wanted = [order[0], order[-1], *middle]
  return np.array(list(dict.fromkeys(int(i) for i in wanted))[:n])


def layers(context: Context, encoder: Encoder, policy: Policy, rows: np.ndarray, tokens: list[list[int]]) -> np.ndarray:
  """The policy's attention over the features in every layer, while it wrote these answers. `-> [L, n, F]`

  Args:
    rows: `[n]` of the encoder's cohort. tokens: of an answer to each.
  """
  prompt = mesh_lib.shard_batch(context.mesh, encoder.batch(rows))
  written, valid = pad_answers([[ids] for ids in tokens], policy.tokenizer.pad_id)
  nothing = np.zeros(written.shape, np.float32)
  rollout = Rollout(written, valid, nothing, nothing)
  mask = parse_rollout(rollout, policy.tokenizer, encoder.cohort, max_named=1).said.align_mask
  rollout, mask = mesh_lib.shard_batch(context.mesh, (rollout, mask))
  read = read_layers(policy.config, settings.update(context.config), len(encoder.cohort.features), policy.params,
                     prompt, rollout, mask)
  return np.asarray(processes.local(read))[:, :, 0]


def build(data: Data, rows: np.ndarray, shown: np.ndarray, arms: dict, salience: np.ndarray,
          by_layer: np.ndarray | None = None) -> list[dict]:
  """The content of cases.json; numbered, without identifiers.

  Args:
    shown: `[n]`, places in `rows`.
    by_layer: `[L, n, F]` of `layers` for the patients shown; None leaves it out.
  """
  out = []
  for number, i in enumerate(shown, 1):
    row = rows[i]
    real = data.visits.valid[row]
    values = data.visits.values[row][real]
    signs = None if data.visits.censor is None else data.visits.censor[row][real]
    features = []
    for f, spec in enumerate(data.cohort.features):
      if np.isnan(values[:, f]).all():
        continue
      features.append({
          'name': spec.name, 'unit': spec.unit, 'ref_low': spec.ref_low, 'ref_high': spec.ref_high,
          'usual': spec.usual,
          'values': [None if np.isnan(v) else float(f'{v:.6g}') for v in values[:, f]],
          **_last(spec, values[:, f], None if signs is None else signs[:, f]),
          'salience': float(salience[row, f]), 'attention': float(arms['rl'].attention[i, f])})
      if signs is not None and signs[:, f].any():  # some are limits, see `Cohort.censor`
        features[-1]['signs'] = signs[:, f].tolist()
      if by_layer is not None:
        features[-1]['layers'] = [round(float(x), 4) for x in by_layer[:, number - 1, f]]
    out.append({
        'label': f'case {number}', 'n_visits': int(real.sum()), 'hours': data.visits.hours[row][real].tolist(),
        'features': features, 'answers': {name: arm.text[i] for name, arm in arms.items()},
        'probabilities': {name: float(arm.prob[i]) for name, arm in arms.items()},
        'outcome': int(data.cohort.label[row])})
  return out


def _last(spec: FeatureSpec, values: np.ndarray, signs: np.ndarray | None) -> dict[str, str]:
  """A feature's last value and its flag, as a prompt has them. `[T], [T]`"""
  at = np.flatnonzero(~np.isnan(values))[-1]
  side = {'H': 'high', 'L': 'low'}.get(prompt.flag(spec, values[at])[:1], '')
  return {'last': prompt.write_value(spec, float(values[at]), prompt.MARKS[0 if signs is None else int(signs[at])]),
          'flag': side}
