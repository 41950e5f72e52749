"""Perturbed records over seeds: what each arm loses by them, and whether the policy loses less than the expert.

A resample of patients is scored for every condition, arm and seed, so a change from the unchanged records is paired by
patient and by seed, and so is the difference of two arms' changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from eagrl_jax.evaluation import bootstrap, metrics, perturb, study
from eagrl_jax.evaluation.files import read_columns
from eagrl_jax.evaluation.study import METRICS
from eagrl_jax.types import ArrayLike, EagrlError

Condition = tuple[str, float]  # kind and level of `perturb.Condition`
UNCHANGED = ('none', 0.0)


def gather(folders: Mapping[int, Path], names: Mapping[str, str], n: int = 1000) -> dict | None:
  """The table of the robustness stages of several seeds' runs, None without one.

  Args:
    folders: seed -> a finished `robustness/`.
    names: arms that have another name here.
    n: resamples of patients.

  Returns:
    {'n': patients, 'rows': of `table`}, with the arms that every seed has.

  Raises:
    EagrlError: predictions are gone, or two seeds judged other patients or conditions.
  """
  label: np.ndarray | None = None
  probs: dict[Condition, dict[str, dict[int, np.ndarray]]] = {}
  for seed, folder in folders.items():
    outcome, found = _read(folder)
    label = outcome if label is None else label
    if not np.array_equal(label, outcome) or (probs and set(found) != set(probs)):
      raise EagrlError(f'{folder} judges other patients or conditions than the seeds before; move it away to make it '
                       'again')
    for at, arms in found.items():
      for arm, prob in arms.items():
        probs.setdefault(at, {}).setdefault(names.get(arm, arm), {})[seed] = prob
  # Means over seeds are comparable between arms of the same seeds alone.
  whole = {at: {arm: by for arm, by in arms.items() if by.keys() == folders.keys()} for at, arms in probs.items()}
  return None if label is None else {'n': len(label), 'rows': table(label, whole, n)}


def _read(folder: Path) -> tuple[np.ndarray, dict[Condition, dict[str, np.ndarray]]]:
  """Outcomes `[N]`, and condition -> arm -> probabilities `[N]`."""
  path = folder / 'predictions.parquet'
  columns = read_columns(path, 'kind', 'level', 'arm', 'predicted_boolean_probability', 'boolean_value')
  if columns is None:
    raise EagrlError(f'{path} is gone; move {folder.name} away to make it again')
  kind, level, arm, prob, outcome = columns.values()
  rows: dict[tuple[str, float, str], list[int]] = {}
  for i, key in enumerate(zip(kind.tolist(), level.tolist(), arm.tolist())):
    rows.setdefault(key, []).append(i)
  found: dict[Condition, dict[str, np.ndarray]] = {}
  for (k, at, name), mine in rows.items():
    found.setdefault((k, at), {})[name] = prob[mine]
  return outcome[next(iter(rows.values()))], found


def table(label: ArrayLike, probs: Mapping[Condition, Mapping[str, Mapping[int, ArrayLike]]],
          n: int = 1000) -> list[dict]:
  """A row a condition, the unchanged records first.

  Args:
    label: `[N]` 0 or 1.
    probs: condition -> arm -> seed -> `[N]` in [0, 1]; `UNCHANGED` is one, and every condition has the same arms and
      seeds.
    n: resamples of patients.

  Returns:
    [{'kind', 'level', 'seeds', 'events' (patients of the rarer outcome), 'arms': arm -> metric -> {'mean', 'ci95',
    'by_seed', 'sd'}, and of all but the first row 'change' in each arm: metric -> {'diff', 'ci95', 'by_seed', 'p'}, and
    'less_than_expert': metric -> the same of EAG-RL's change minus the expert's, with 'p_holm' over the conditions}].
  """
  y = np.asarray(label).astype(int)
  counts, _ = bootstrap.resamples(y, n)
  seeds = sorted(next(iter(probs[UNCHANGED].values())))
  # By condition, arm and metric: a value a seed, and of each seed a value a resample.
  point: dict[tuple[Condition, str, str], np.ndarray] = {}
  drawn: dict[tuple[Condition, str, str], np.ndarray] = {}
  for at, arms in probs.items():
    for arm, by in arms.items():
      scores = [bootstrap.weighted_scores(y, by[s], counts) for s in seeds]
      for m in METRICS:
        point[at, arm, m] = np.array([metrics.METRICS[m](y, np.asarray(by[s])) for s in seeds])
        drawn[at, arm, m] = np.stack([score[m] for score in scores])
  change = lambda of, at, arm, m: of[at, arm, m] - of[UNCHANGED, arm, m]
  rows: list[dict] = []
  for at, arms in probs.items():
    row: dict = {'kind': at[0], 'level': at[1], 'seeds': seeds, 'events': study.rarer(y),
           'arms': {arm: {m: study.over_seeds(point[at, arm, m], drawn[at, arm, m]) for m in METRICS} for arm in arms}}
    if at != UNCHANGED:
      for arm in arms:
        row['arms'][arm]['change'] = {
            m: study.difference(*(change(of, at, arm, m) for of in (point, drawn))) for m in METRICS}
      row['less_than_expert'] = {m: study.difference(*(
          change(of, at, 'eag', m) - change(of, at, 'expert', m) for of in (point, drawn))) for m in METRICS}
    rows.append(row)
  for m in METRICS:
    study.adjust([row['less_than_expert'][m] for row in rows if 'less_than_expert' in row])
  return sorted(rows, key=lambda row: (row['kind'], row['level']) != UNCHANGED)


def all_shuffled(rows: list[dict]) -> dict | None:
  """The row in which all features change places; None where there is none."""
  return next((row for row in rows if (row['kind'], row['level']) == ('order', 1)), None)


def markdown(n: int, rows: list[dict]) -> str:
  """The rows as a section of study.md; `n` patients."""
  arms = [arm for arm in ('sft', 'eag', 'expert') if arm in rows[0]['arms']]
  span = lambda gap: f'{gap["diff"]:+.3f} ({gap["ci95"][0]:+.3f} to {gap["ci95"][1]:+.3f})'
  lines = [
      '## Perturbed records', '',
      f'{n} of the test patients, seeds {", ".join(map(str, rows[0]["seeds"]))}. AUROC, and the change from the '
      'unchanged records, means over seeds. Last: the '
      'difference of two changes, above 0 where EAG-RL loses less; an arm near .5 has little to lose.', '',
      '| records | ' + ' | '.join(f'{arm} | change' for arm in arms) + ' | eag − expert, changes | p, Holm |',
      '|---' * (2 * len(arms) + 3) + '|']
  for row in rows:
    cells = ['unchanged' if row is rows[0] else _said(row)]
    for arm in arms:
      score = row['arms'][arm]
      cells += [f'{score["auroc"]["mean"]:.3f}', span(score['change']['auroc']) if 'change' in score else '']
    gap = row.get('less_than_expert', {}).get('auroc')
    cells += [span(gap), f'{gap["p_holm"]:.3f}'] if gap else ['', '']
    lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines) + '\n'


def _said(row: Mapping) -> str:
  known = {'sampling': 'other draws of the answers', 'wording': 'the prompt rephrased'}
  return known.get(row['kind']) or f'{perturb.WORDS[row["kind"]]}: {row["level"]:g}'
