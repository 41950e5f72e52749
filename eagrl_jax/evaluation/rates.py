"""Learning rates of a study: each arm is given the one that its own answers to validation patients speak for.

Test patients have no part in the choice. What they would have said of the other rates is shown beside it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from eagrl_jax.evaluation import metrics
from eagrl_jax.types import ArrayLike

Answers = Mapping[str, Mapping[int, ArrayLike]]  # cell -> seed -> [N] in [0, 1]


def table(arm: str, rates: Mapping[str, float], valid_label: ArrayLike, valid: Answers, label: ArrayLike,
          test: Answers) -> list[dict]:
  """A row a rate; the first of the highest validation AUROC is chosen.

  Args:
    rates: cell -> learning rate, of this arm; every cell has the same seeds in `valid` and `test`.
    valid_label, label: `[N]` 0 or 1, of validation and test patients; both outcomes occur in each (`ehr.splits`).

  Returns:
    [{'arm', 'cell', 'rate', 'seeds', 'validation', 'auroc', 'chosen', 'n_validation', 'positive'}]: AUROC of validation
    and of test patients, means over seeds; how many validation patients there are, and of those how many have the
    outcome.
  """
  chosen_by = {'n_validation': len(np.asarray(valid_label)), 'positive': int(np.sum(valid_label))}
  mean = lambda y, by: float(np.mean([metrics.METRICS['auroc'](np.asarray(y).astype(int), np.asarray(p))
                                      for p in by.values()]))
  rows: list[dict] = [{
      'arm': arm, 'cell': cell, 'rate': rate, 'seeds': sorted(valid[cell]),
      'validation': mean(valid_label, valid[cell]), 'auroc': mean(label, test[cell])}
                      for cell, rate in rates.items()]
  best = max(rows, key=lambda row: row['validation'])
  return [row | chosen_by | {'chosen': row is best} for row in rows]


def markdown(rows: list[dict], reference: str) -> str:
  """The rows as a section of study.md; `reference` is the arm of which other things are shown too."""
  if not rows:
    return ('## Learning rates\n\nNot chosen yet: no seed has every arm at every rate. All arms are shown at '
            'rl.learning_rate.\n')
  other = [row for row in rows if row['arm'] == reference and row['chosen'] and row['cell'] != reference]
  lines = [
      '## Learning rates', '',
      f"Each arm's is the one of the highest AUROC on {rows[0]['n_validation']} validation patients, "
      f'{rows[0]["positive"]} of them positive, mean over seeds. Test AUROC chose nothing.'
      + (' Perturbed records, transfers and other ways to an answer remain those of the policy at rl.learning_rate.'
         if other else ''), '',
      '| arm | learning rate | AUROC, validation | AUROC, test | chosen | seeds |', '|---|---|---|---|---|---|']
  lines += [f'| {row["arm"]} | {row["rate"]:g} | {row["validation"]:.3f} | {row["auroc"]:.3f} | '
            f'{"yes" if row["chosen"] else ""} | {", ".join(map(str, row["seeds"]))} |' for row in rows]
  return '\n'.join(lines) + '\n'
