"""A study's policies on other cohorts: every arm over seeds, as at home.

All seeds judge the same patients of the other cohort, so a resample of patients is scored seed by seed and averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from eagrl_jax.evaluation import study
from eagrl_jax.evaluation.files import read_columns, read_json
from eagrl_jax.evaluation.study import METRICS, PROPER, rarer
from eagrl_jax.types import EagrlError


def gather(folders: Mapping[str, Mapping[int, Path]], names: Mapping[str, str], n: int = 1000) -> dict[str, dict]:
  """Cohorts by the names of their folders.

  Args:
    folders: name -> seed -> a finished `transfer/<name>/` with its predictions.parquet.
    names: arms that have another name here.
    n: resamples of patients.

  Returns:
    name -> {'n', 'prevalence', 'events' (patients of the rarer outcome), 'mapped_features', 'seeds', 'arms':
    `study.table` with EAG-RL as reference}; 'p_holm' is over the arms of a metric in all cohorts.

  Raises:
    EagrlError: predictions are broken, or two seeds judged other patients.
  """
  out: dict[str, dict] = {}
  for name, by_seed in sorted(folders.items()):
    label: np.ndarray | None = None
    probs: dict[str, dict[int, np.ndarray]] = {}
    for seed, folder in sorted(by_seed.items()):
      outcome, found = _read(folder)
      label = outcome if label is None else label
      if not np.array_equal(label, outcome):
        raise EagrlError(f'{folder} judges other patients than the seeds before; move it away and run the transfer '
                         'again')
      for arm, prob in found.items():
        probs.setdefault(names.get(arm, arm), {})[seed] = prob
    # Means over seeds are comparable between arms of the same seeds alone.
    whole = {arm: by for arm, by in probs.items() if by.keys() == by_seed.keys()}
    if label is not None:
      summary = read_json(folder / 'metrics.json')
      out[name] = {'n': len(label), 'prevalence': float(label.mean()), 'mapped_features': summary['mapped_features'],
                   'events': rarer(label), 'seeds': sorted(by_seed), 'arms': study.table(label, whole, 'eag', n)}
  for m in (*METRICS, *PROPER):
    study.adjust([row['against'][m] for found in out.values() for row in found['arms'].values() if 'against' in row])
  return out


def _read(folder: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Outcomes `[N]`, and arm -> probabilities `[N]`."""
  columns = read_columns(folder / 'predictions.parquet', 'arm', 'predicted_boolean_probability', 'boolean_value')
  if columns is None:
    raise EagrlError(f'{folder}/predictions.parquet is gone; move {folder.name} away and run the transfer again')
  arm, prob, outcome = columns.values()
  return outcome[arm == arm[0]], {name: prob[arm == name] for name in dict.fromkeys(arm.tolist())}


def markdown(found: Mapping[str, Mapping]) -> str:
  """What `gather` returns as a section of study.md."""
  span = lambda score: f'{score["mean"]:.3f} ({score["ci95"][0]:.3f}-{score["ci95"][1]:.3f})'
  gap = lambda of: f'{of["diff"]:+.3f} ({of["ci95"][0]:+.3f} to {of["ci95"][1]:+.3f})'
  lines = ['## Elsewhere', '', 'On other cohorts by `configs/transfer.py`, fitted to nothing of theirs. Means over '
           'seeds; differences are EAG-RL minus the arm, p by Holm over the arms of all cohorts here.']
  for name, of in found.items():
    lines += ['', f'{name}: {of["n"]} patients, {100 * of["prevalence"]:.1f} % positive, {of["mapped_features"]} '
              f'features met; seeds {", ".join(map(str, of["seeds"]))}.', '',
              '| arm | AUROC | seeds | AUPRC | log loss | EAG-RL - arm, AUROC | p | AUPRC | p |', '|---' * 9 + '|']
    for arm, row in of['arms'].items():
      cells = [arm, span(row['auroc']), ', '.join(f'{x:.3f}' for x in row['auroc']['by_seed']), span(row['auprc']),
               f'{row["log_loss"]["mean"]:.3f}']
      for m in METRICS:
        cells += [gap(row['against'][m]), f'{row["against"][m]["p_holm"]:.3f}'] if 'against' in row else ['', '']
      lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines) + '\n'
