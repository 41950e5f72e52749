"""Learning rates of a study: each arm is given the one that its own answers to validation patients speak for.

Test patients have no part in the choice. What they would have said of the other rates is shown beside it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from eagrl_jax.evaluation import metrics
from eagrl_jax.types import ArrayLike, EagrlError

Answers = Mapping[str, Mapping[int, ArrayLike]]  # cell -> seed -> [N] in [0, 1]


def table(arm: str, rates: Mapping[str, float], valid_label: ArrayLike, valid: Answers, label: ArrayLike,
          test: Answers) -> list[dict]:
  """A row a rate; the first of the highest validation AUROC is chosen.

  Args:
    rates: cell -> learning rate, of this arm; every cell has the same seeds in `valid` and `test`.
    valid_label, label: `[N]` 0 or 1, of validation and test patients.

  Returns:
    [{'arm', 'cell', 'rate', 'seeds', 'validation', 'auroc', 'chosen'}]: AUROC of validation and of test patients, means
    over seeds.

  Raises:
    EagrlError: all validation patients have one outcome.
  """
  if len(np.unique(np.asarray(valid_label))) < 2:
    raise EagrlError('study.learning_rates: the validation patients have one outcome, so no rate can be chosen by '
                     'them; leave it out, or give more of them (data.valid_fraction)')
  mean = lambda y, by: float(np.mean([metrics.METRICS['auroc'](np.asarray(y).astype(int), np.asarray(p))
                                      for p in by.values()]))
  rows: list[dict] = [{
      'arm': arm, 'cell': cell, 'rate': rate, 'seeds': sorted(valid[cell]),
      'validation': mean(valid_label, valid[cell]), 'auroc': mean(label, test[cell])}
                      for cell, rate in rates.items()]
  best = max(rows, key=lambda row: row['validation'])
  return [row | {'chosen': row is best} for row in rows]


def markdown(rows: list[dict]) -> str:
  """The rows as a section of study.md."""
  lines = ['## Learning rates', '', "Each arm's is the one of the highest AUROC on validation patients; test AUROC is "
           'shown beside it and chose nothing. Means over seeds.', '',
           '| arm | learning rate | AUROC, validation | AUROC, test | chosen | seeds |', '|---|---|---|---|---|---|']
  lines += [f'| {row["arm"]} | {row["rate"]:g} | {row["validation"]:.3f} | {row["auroc"]:.3f} | '
            f'{"yes" if row["chosen"] else ""} | {len(row["seeds"])} |' for row in rows]
  return '\n'.join(lines) + '\n'
