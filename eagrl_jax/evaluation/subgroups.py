"""Discrimination by sex and age band, with intervals; groups that are too small are hidden."""

from __future__ import annotations

import dataclasses

import numpy as np

from eagrl_jax.evaluation import bootstrap

AGE_BANDS = ((0, 50), (50, 65), (65, 80), (80, 200))  # years, upper end excluded
SMALLEST = 10  # patients of each outcome; fewer are suppressed


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


def table(label: np.ndarray, prob: np.ndarray, age: np.ndarray, sex: np.ndarray, resamples: int = 1000
          ) -> list[Subgroup]:
  """AUROC of every group. All arrays `[N]`."""
  rows = []
  for name, chosen in masks(age, sex).items():
    y, p = label[chosen], prob[chosen]
    if min(int(y.sum()), int((1 - y).sum())) < SMALLEST:
      rows.append(Subgroup(name, None, None, None, None))
      continue
    found = bootstrap.bootstrap(y, p, resamples)['auroc']
    rows.append(Subgroup(name, len(y), int(y.sum()), found['point'], tuple(found['ci95'])))
  return rows
