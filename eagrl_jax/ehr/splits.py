"""Train, valid and test patients: stratified by outcome, decided by (seed, id), kept in a file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eagrl_jax.ehr.records import hashed_order
from eagrl_jax.types import EagrlError

_MEDS_NAMES = {'train': 'train', 'valid': 'tuning', 'test': 'held_out'}


@dataclasses.dataclass(frozen=True)
class Splits:
  """Row numbers of a cohort, ascending; every row is in exactly one."""

  train: np.ndarray  # [n_train] int64
  valid: np.ndarray  # [n_valid] int64
  test: np.ndarray  # [n_test] int64


def make_splits(label: np.ndarray, subject_id: np.ndarray, *, test: int | float, valid_fraction: float,
                seed: int) -> Splits:
  """Splits patients so that each part has the cohort's prevalence.

  Args:
    label: [N] 0 or 1.
    subject_id: [N] distinct ids; a patient's part depends on them and the seed, not on the row order.
    test: number of test patients (int), or their share of the cohort (float below 1).
    valid_fraction: share of the remaining patients used for validation.
    seed: any integer.

  Raises:
    EagrlError: repeated ids, sizes that do not fit, or a part without both outcomes.
  """
  n = len(label)
  if len(np.unique(subject_id)) != n:
    raise EagrlError('splits: an id is repeated, so a patient could be in two splits; give each patient one row')
  share = isinstance(test, float)
  n_test = round(test * n) if share else int(test)
  if not 0 < n_test < n or (share and test >= 1):
    raise EagrlError(f'data.test: {test} leaves no train or no test patients of {n}; give a count or a share below 1')
  if not 0 < valid_fraction < 1:
    raise EagrlError(f'data.valid_fraction: {valid_fraction} must lie between 0 and 1')

  order = hashed_order(subject_id, str(seed))
  held = _stratified(order, label, n_test)
  rest = order[~np.isin(order, held)]
  tuning = _stratified(rest, label, round(valid_fraction * len(rest)))
  train = rest[~np.isin(rest, tuning)]
  splits = Splits(np.sort(train), np.sort(tuning), np.sort(held))
  check(splits, label, 'data.test or data.valid_fraction')
  return splits


def check(splits: Splits, label: np.ndarray, field: str) -> None:
  """Refuses a part without patients of both outcomes; `field` is what to change."""
  for name in _MEDS_NAMES:
    rows = getattr(splits, name)
    positives = int(np.sum(label[rows] == 1))
    if positives in (0, len(rows)):
      raise EagrlError(f'splits: the {name} part has {positives} positives of {len(rows)} patients and needs both '
                       f'outcomes; change {field}')


def _stratified(order: np.ndarray, label: np.ndarray, count: int) -> np.ndarray:
  """The first `count` rows of `order`, taken from the two classes in proportion."""
  positive, negative = order[label[order] == 1], order[label[order] != 1]
  take = round(count * len(positive) / len(order))
  take = min(max(take, count - len(negative)), len(positive))
  return np.concatenate([positive[:take], negative[:count - take]])


def save(path: str | Path, splits: Splits, subject_id: np.ndarray) -> None:
  """Writes a MEDS subject-split table: subject_id, split in {train, tuning, held_out}."""
  name = np.empty(len(subject_id), object)
  for part, meds in _MEDS_NAMES.items():
    name[getattr(splits, part)] = meds
  pq.write_table(pa.table({'subject_id': subject_id.astype(str).tolist(), 'split': name.tolist()}), path)


def load(path: str | Path, subject_id: np.ndarray) -> Splits:
  """Reads a split file for the cohort with these ids.

  Raises:
    EagrlError: not such a file, a patient in two splits, unknown, or in none.
  """
  try:
    table = pq.read_table(path, columns=['subject_id', 'split'])
    ids = table['subject_id'].cast(pa.string()).to_numpy(zero_copy_only=False).astype(str)
    name = table['split'].to_numpy(zero_copy_only=False).astype(str)
  except (OSError, ValueError, pa.ArrowException):
    raise EagrlError(f'splits: {Path(path).name} is not a parquet file with subject_id and split; '
                     'make it again') from None
  row = {subject: i for i, subject in enumerate(subject_id.astype(str))}
  unknown = sum(i not in row for i in ids)
  problems = (
      (len(ids) - len(np.unique(ids)), 'patients stand twice in the file; keep each in one split'),
      (unknown, 'patients of the file are not in the cohort; make the splits again'),
      (len(row) - (len(ids) - unknown), 'patients of the cohort are in no split; make the splits again'),
      (int(np.sum(~np.isin(name, list(_MEDS_NAMES.values())))), "split names are not train, tuning or held_out"),
  )
  for count, problem in problems:
    if count:
      raise EagrlError(f'splits: {count} {problem}')
  rows = np.array([row[i] for i in ids], np.int64)
  return Splits(*(np.sort(rows[name == _MEDS_NAMES[part]]) for part in ('train', 'valid', 'test')))
