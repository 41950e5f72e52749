"""SHA-256 sums of a folder's files, so that a bit that flipped on disk is found before its weights are used."""

from __future__ import annotations

import hashlib
import json
import pathlib

NAME = 'sha256.json'


def write(folder: pathlib.Path) -> None:
  """Leaves `sha256.json` in a finished folder; atomic, and itself not summed."""
  partial = folder / f'.{NAME}'
  partial.write_text(json.dumps(_sums(folder), indent=1))
  partial.rename(folder / NAME)


def broken(folder: pathlib.Path) -> str | None:
  """What is wrong, in a few words; None when every file that was summed is what it was then.

  A folder without sums was cut short between its last file and them, which is not a fault of its files: None.
  """
  try:
    wanted = json.loads((folder / NAME).read_text())
  except FileNotFoundError:
    return None
  except (OSError, ValueError):
    return f'{NAME} is unreadable'
  try:
    found = _sums(folder)
  except OSError as error:
    return f'unreadable: {type(error).__name__}'
  for path, digest in wanted.items():  # a file that came later is no fault of those that were written
    if found.get(path) != digest:
      return f'{path} {"has changed" if path in found else "is missing"}'
  return None


def _sums(folder: pathlib.Path) -> dict[str, str]:
  out = {}
  for path in sorted(folder.rglob('*')):
    if path.is_file() and path.name not in (NAME, f'.{NAME}'):
      with path.open('rb') as file:
        out[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, 'sha256').hexdigest()
  return out
