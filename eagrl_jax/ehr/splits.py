"""Train, valid and test patients: stratified by outcome, decided by (seed, id), kept in a file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eagrl_jax.ehr.records import hashed_order
from eagrl_jax.types import EagrlError

# name -> train, valid and test patients
PROTOCOLS = {'tjh_140_21_200': (140, 21, 200), 'mimic4_8750_1250_200': (8750, 1250, 200)}
FOLDS = 10
_OF_STAYS = ('yaib',)  # sources whose tables name no patients
_PROTOCOL = 'eagrl_protocol'  # key of a split file's metadata
_MEDS_NAMES = {'train': 'train', 'valid': 'tuning', 'test': 'held_out'}


@dataclasses.dataclass(frozen=True)
class Splits:
  """Row numbers of a cohort, ascending; every row is in exactly one."""

  train: np.ndarray  # [n_train] int64
  valid: np.ndarray  # [n_valid] int64
  test: np.ndarray  # [n_test] int64


def kept_apart(source: str) -> str:
  """What the ids of a `data.source` name, and so what no two splits share: 'patients', or 'stays' that may be one's."""
  return 'stays' if source in _OF_STAYS else 'patients'


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


def parse_protocol(name: str) -> tuple[int, ...] | None:
  """Sizes of train, valid and test, or the number of one fold; None of ''.

  Raises:
    EagrlError: no such protocol.
  """
  kind, _, fold = name.partition(':')
  if not name:
    return None
  if name in PROTOCOLS:
    return PROTOCOLS[name]
  if kind == f'{FOLDS}fold' and fold.isascii() and fold.isdigit() and int(fold) < FOLDS:
    return (int(fold),)
  raise EagrlError(f'data.protocol={name!r} is unknown; choose one of {", ".join(PROTOCOLS)}, or {FOLDS}fold:<k> with '
                   f'k from 0 to {FOLDS - 1}')


def by_protocol(name: str, label: np.ndarray, subject_id: np.ndarray, seed: int) -> Splits:
  """The sizes of published work, split by patient; who is in which part follows from ids and seed, as above.

    tjh_140_21_200          200 test patients at random and not stratified, the rest in 140 and 21 stratified.
    mimic4_8750_1250_200    all parts stratified, of the patients that `protocol_rows` draws.
    10fold:<k>              10 stratified folds, fold k tests; a ninth of the rest validates.

  Published work splits MIMIC-IV by admission, so that a patient can be in two parts; here each has one row.

  Raises:
    EagrlError: unknown name, repeated ids, a cohort of another size, or a part without both outcomes.
  """
  sizes, n = parse_protocol(name), len(label)
  if sizes is None or len(np.unique(subject_id)) != n:
    raise EagrlError('splits: an id is repeated or data.protocol is empty; give each patient one row and a protocol')
  order = hashed_order(subject_id, str(seed))
  if len(sizes) == 1:
    # Every class is dealt out in turn, and the second goes on where the first stopped: folds differ by one patient.
    dealt = np.concatenate([order[label[order] == y] for y in (1, 0)])
    held = dealt[np.arange(n) % FOLDS == sizes[0]]
    rest = order[~np.isin(order, held)]
    tuning = _stratified(rest, label, round(len(rest) / (FOLDS - 1)))
  else:
    if n != sum(sizes):
      raise EagrlError(f'data.protocol={name!r} is of {sum(sizes)} patients and the cohort has {n}; use another '
                       'protocol, or data.test and data.valid_fraction')
    held = order[:sizes[2]] if name.startswith('tjh') else _stratified(order, label, sizes[2])
    rest = order[~np.isin(order, held)]
    tuning = _stratified(rest, label, sizes[1])
  splits = Splits(np.sort(rest[~np.isin(rest, tuning)]), np.sort(tuning), np.sort(held))
  check(splits, label, 'data.protocol')
  return splits


def protocol_rows(name: str, label: np.ndarray, subject_id: np.ndarray, seed: int) -> np.ndarray:
  """Rows that a protocol uses, ascending: of MIMIC-IV a stratified draw of its size, of the others all."""
  sizes, n = parse_protocol(name), len(label)
  if sizes is None or not name.startswith('mimic4') or n <= sum(sizes):
    return np.arange(n)
  return np.sort(_stratified(hashed_order(subject_id, f'protocol/{seed}'), label, sum(sizes)))


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


def save(path: str | Path, splits: Splits, subject_id: np.ndarray, protocol: str = '') -> None:
  """Writes a MEDS subject-split table: subject_id, split in {train, tuning, held_out}.

  Args:
    protocol: the published one that made it, where it drew some patients of the cohort only.
  """
  name = np.empty(len(subject_id), object)
  for part, meds in _MEDS_NAMES.items():
    name[getattr(splits, part)] = meds
  table = pa.table({'subject_id': subject_id.astype(str).tolist(), 'split': name.tolist()})
  pq.write_table(table.replace_schema_metadata({_PROTOCOL: protocol}) if protocol else table, path)


def load(path: str | Path, subject_id: np.ndarray, *, others: bool = False) -> Splits:
  """Reads a split file for the cohort with these ids.

  Args:
    others: the file may list patients that the cohort does not have, as that of a whole MEDS data set does.

  Raises:
    EagrlError: not such a file, a patient in two splits, unknown, or in none.
  """
  ids, name = _read(path)
  row = {subject: i for i, subject in enumerate(subject_id.astype(str))}
  known = np.array([i in row for i in ids], bool)
  problems = (
      (len(ids) - len(np.unique(ids)), 'patients stand twice in the file; keep each in one split'),
      (0 if others else int((~known).sum()), 'patients of the file are not in the cohort; make the splits again'),
      (len(row) - int(known.sum()), 'patients of the cohort are in no split; make the splits again'),
      (int(np.sum(~np.isin(name, list(_MEDS_NAMES.values())))), "split names are not train, tuning or held_out"),
  )
  for count, problem in problems:
    if count:
      raise EagrlError(f'splits: {count} {problem}')
  rows, name = np.array([row[i] for i in ids[known]], np.int64), name[known]
  return Splits(*(np.sort(rows[name == _MEDS_NAMES[part]]) for part in ('train', 'valid', 'test')))


def drawn_by(path: str | Path) -> str:
  """The protocol that made a split file of some patients of a cohort; '' where it names none."""
  try:
    return (pq.read_schema(path).metadata or {}).get(_PROTOCOL.encode(), b'').decode('utf-8', 'replace')
  except (OSError, ValueError, pa.ArrowException):
    return ''  # its reader says what is wrong with it


def listed(path: str | Path) -> np.ndarray:
  """The ids of a split file."""
  return _read(path)[0]


def outside(path: str | Path, subject_id: np.ndarray) -> int:
  """How many patients of a split file are not among these."""
  return int((~np.isin(listed(path), subject_id.astype(str))).sum())


def _read(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
  try:
    table = pq.read_table(path, columns=['subject_id', 'split'])
    return (table['subject_id'].cast(pa.string()).to_numpy(zero_copy_only=False).astype(str),
            table['split'].to_numpy(zero_copy_only=False).astype(str))
  except (OSError, ValueError, pa.ArrowException):
    raise EagrlError(f'splits: {Path(path).name} is not a parquet file with subject_id and split; '
                     'make it again') from None
