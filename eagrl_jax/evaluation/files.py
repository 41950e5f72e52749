"""A run's files as they are read back, and their settings on one line each."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eagrl_jax.types import EagrlError, made_again


def read_json(path: Path) -> Any:
  """The content of a JSON file, None where there is none.

  Raises:
    EagrlError: names a file that is broken, and never shows its content.
  """
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise EagrlError(f'{path.parent.name}/{path.name} is not valid JSON; {_fix(path)}') from error


def read_columns(path: Path, *names: str) -> dict[str, np.ndarray] | None:
  """Columns of a Parquet table that a stage wrote, None where there is none. `-> {name: [n]}`

  Raises:
    EagrlError: it is broken, or lacks one of them.
  """
  if not path.exists():
    return None
  try:
    table = pq.read_table(path, columns=[*names])
    return {name: np.asarray(table[name].to_pylist()) for name in names}
  except (KeyError, OSError, ValueError, pa.ArrowException) as error:
    where = '/'.join(path.parts[-3:])  # from the run's folder on: a study has several
    raise EagrlError(f'{where} cannot be read; {_fix(path)}') from error


def read_lines(path: Path) -> list[dict]:
  """Rows of a log, none without one; a last line cut short by a killed run is left out."""
  if not path.exists():
    return []
  lines = path.read_text(encoding='utf-8').splitlines()
  rows = []
  for i, line in enumerate(lines):
    try:
      rows.append(json.loads(line))
    except ValueError as error:
      if i < len(lines) - 1:
        where = f'{path.parent.name}/{path.name} line {i + 1}'
        raise EagrlError(f'{where} is not valid JSON; move the file away') from error
  return rows


def _fix(path: Path) -> str:
  """How a broken file is made again: a mark beside it, a stage's or another folder's, has it skipped."""
  mark = next((name for name in ('done.json', 'manifest.json') if (path.parent / name).exists()), None)
  return made_again(path.parent.name, mark) if mark else 'run what writes it again'


# Settings that say where something lies: a folder may be called after a patient, a server after a hospital.
PLACES = ('path', 'outcomes', 'features', 'splits', 'statics', 'checkpoint', 'rollouts', 'workdir')


def flat(value: Any, share: bool, prefix: str = '') -> list[tuple[str, str]]:
  """Nested settings as (dotted key, text); long lists are counted, not printed."""
  if isinstance(value, Mapping):
    return [row for k, v in value.items() for row in flat(v, share, f'{prefix}.{k}' if prefix else str(k))]
  if value is None or value == '' or value == []:
    return [(prefix, 'not set')] if prefix else []
  if isinstance(value, list):
    return [(prefix, ', '.join(map(str, value)) if len(value) <= 12 and not isinstance(value[0], (list, dict))
             else f'{len(value):,} entries')]
  text = str(value)
  private = share and (prefix.rpartition('.')[2] in PLACES or re.match(r'[/~\\]|\w:\\', text))
  return [(prefix, re.split(r'[/\\]', text.rstrip('/\\'))[-1] if private else text)]
