"""Discrimination by sex and age band, with intervals; small groups are hidden, and those that would give them away.

All patients are counted in public, so a single hidden group is what the others of its kind leave of them. Hence
complementary suppression (Cox, J Am Stat Assoc 1980;75:377-385): one more group of the kind is hidden, the smallest,
wherever the hidden patients together would still be few. A patient of unknown age or sex is in no group and so hidden.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from eagrl_jax.evaluation import bootstrap

AGE_BANDS = ((0, 50), (50, 65), (65, 80), (80, 200))  # years, upper end excluded
SMALLEST = 10  # patients of each outcome; fewer are suppressed
Count = tuple[int, int]  # patients, and those with the outcome


@dataclasses.dataclass(frozen=True)
class Subgroup:
  """One row of the table; counts and figures are None where it is suppressed."""

  name: str
  n: int | None
  positives: int | None
  auroc: float | None
  ci95: tuple[float, float] | None


def masks(age: np.ndarray, sex: np.ndarray) -> dict[str, np.ndarray]:
  """Boolean `[N]` of every group; a patient of unknown age or sex is in none of that kind."""
  out = {'women': sex == 0, 'men': sex == 1}
  for low, high in AGE_BANDS:
    name = f'under {high}' if low == 0 else f'{low} and over' if high == 200 else f'{low} to {high - 1}'
    out[f'age {name}'] = (age >= low) & (age < high)
  return out


def withheld(counts: Mapping[str, Count | None], everyone: Count) -> set[str]:
  """Names of the groups that must not be shown; it does not say which of them are small.

  Args:
    counts: of every group of `masks`, None of one whose count is hidden already.
    everyone: the count of all patients.
  """
  out = {name for name, count in counts.items() if count is None or _small(count)}
  kinds = {name: name.startswith('age ') for name in counts}
  for kind in set(kinds.values()):
    shown = {name: count for name, count in counts.items() if count and kinds[name] == kind and name not in out}
    hidden = (everyone[0] - sum(n for n, _ in shown.values()), everyone[1] - sum(y for _, y in shown.values()))
    if shown and hidden[0] and _small(hidden):
      out.add(min(shown, key=lambda name: shown[name]))  # not small itself, so one is enough
  return out


def _small(count: Count) -> bool:
  return min(count[1], count[0] - count[1]) < SMALLEST


def table(label: np.ndarray, prob: np.ndarray, age: np.ndarray, sex: np.ndarray, resamples: int = 1000
          ) -> list[Subgroup]:
  """AUROC of every group that may be shown. All arrays `[N]`."""
  groups = masks(age, sex)
  hidden = withheld({name: (int(chosen.sum()), int(label[chosen].sum())) for name, chosen in groups.items()},
                    (len(label), int(label.sum())))
  rows = []
  for name, chosen in groups.items():
    if name in hidden:
      rows.append(Subgroup(name, None, None, None, None))
      continue
    y, p = label[chosen], prob[chosen]
    found = bootstrap.bootstrap(y, p, resamples)['auroc']
    rows.append(Subgroup(name, len(y), int(y.sum()), found['point'], tuple(found['ci95'])))
  return rows
