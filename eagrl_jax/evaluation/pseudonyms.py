"""Ids under which patients leave `prepare/`: keyed hashes whose key stays in the run's folder.

Ids are few: a hash of an id alone, or with a salt that others know, is undone by hashing them all. So the salt is the
secret key of an HMAC (ENISA, Pseudonymisation techniques and best practices, 2019, §5.1), drawn once a run's folder and
never passed on. Within the folder a patient has one pseudonym; those of two folders have nothing in common.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eagrl_jax.evaluation.files import read_columns
from eagrl_jax.types import EagrlError

FILE = 'id_salt.txt'
_BYTES = 32


def salt(workdir: Path) -> bytes:
  """The folder's secret salt, made where there is none yet; the caller holds the folder.

  Raises:
    EagrlError: its file is damaged.
  """
  path = workdir / FILE
  if not path.exists():
    part = path.with_suffix('.part')
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), 'w') as file:
      file.write(secrets.token_hex(_BYTES))
    part.replace(path)
  return _read(path)


def mark(workdir: Path) -> str:
  """Tells one salt from another without giving it away: its SHA-256, '' where there is none yet."""
  path = workdir / FILE
  return hashlib.sha256(_read(path)).hexdigest() if path.exists() else ''


def of(subject_id: Sequence[str] | np.ndarray, key: bytes) -> list[str]:
  """A pseudonym of 16 hexadecimal digits for each id."""
  return [hmac.digest(key, str(i).encode(), 'sha256').hex()[:16] for i in subject_id]


def shown(subject_id: Sequence[str] | np.ndarray, workdir: Path, plain: bool) -> list[str]:
  """The ids under which a run's tables name its patients: pseudonyms, or with `plain` the source's own."""
  return [str(i) for i in subject_id] if plain else of(subject_id, salt(workdir))


def numbers(subject_id: Sequence[str] | np.ndarray, key: bytes) -> np.ndarray:
  """The first 15 digits of each pseudonym as a number, where ids must be numbers. `[N] -> [N] int64`"""
  return np.array([int(found[:15], 16) for found in of(subject_id, key)], np.int64)


def undone(workdir: Path, subject_id: np.ndarray) -> np.ndarray | None:
  """The source's ids of a run's patients, for the owner of the folder; None where its files do not tell them all.

  Args:
    subject_id: `[n]` str, pseudonyms or the source's ids.
  """
  split = read_columns(workdir / 'prepare/splits.parquet', 'subject_id')
  if split is None:
    return None
  ids = split['subject_id'].tolist()
  known = dict(zip(ids, ids))
  if (workdir / FILE).exists():
    known |= zip(of(ids, _read(workdir / FILE)), ids)
  return np.array([known[i] for i in subject_id]) if all(i in known for i in subject_id) else None


def _read(path: Path) -> bytes:
  try:
    key = bytes.fromhex(path.read_text())
  except ValueError:
    key = b''
  if len(key) != _BYTES:
    raise EagrlError(f'{path.name} is damaged; bring it back from a copy, or remove it and the done.json of '
                     'evaluate and robustness, and run them again')
  return key
