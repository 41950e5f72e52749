"""What is asked of single fields of a config: what does not meet it is named in one line."""

from __future__ import annotations

import math
import os
import pathlib
import re
from typing import Any

from ml_collections import ConfigDict

from eagrl_jax.types import EagrlError


def finite(c: ConfigDict) -> None:
  """Refuses infinities and NaN, alone or in a tuple, in any section."""
  for section, fields in c.items():
    for field, value in fields.items() if isinstance(fields, ConfigDict) else ():
      for x in value if isinstance(value, tuple) else (value,):
        if isinstance(x, float) and not math.isfinite(x):
          raise EagrlError(f'{section}.{field}={value} is no finite number')


def at_least(low: int, c: ConfigDict, *names: str) -> None:
  """Refuses a field, such as 'rl.steps', below `low`."""
  for name in names:
    section, field = name.split('.')
    if c[section][field] < low:
      raise EagrlError(f'{name}={c[section][field]} must be at least {low}')


def all_numbers(name: str, values: Any, whole: bool = False) -> None:
  """Refuses a tuple that holds anything but numbers."""
  kind = int if whole else int | float
  if not all(isinstance(x, kind) and not isinstance(x, bool) for x in values):
    raise EagrlError(f'{name}={tuple(values)} must hold {"whole " * whole}numbers')


def split_commas(c: ConfigDict) -> None:
  """A tuple of words may be written as one of numbers is: `--config.study.arms=grpo,dapo`. Changes the config."""
  for fields in c.values():
    for field, value in fields.items() if isinstance(fields, ConfigDict) else ():
      if isinstance(value, tuple) and len(value) == 1 and isinstance(value[0], str) and ',' in value[0]:
        fields[field] = tuple(word.strip() for word in value[0].split(',') if word.strip())


def one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
  if value not in allowed:
    raise EagrlError(f'{field}={value!r} is unknown; choose one of {", ".join(allowed)}')


def existing(field: str, path: str) -> None:
  if not path or not os.path.exists(path):
    raise EagrlError(f'{field}={path!r}: no such file or folder; set --config.{field}=')


def expand_home(c: ConfigDict) -> None:
  """A `~` in a path of patients' files becomes the home folder: a shell leaves it alone behind a `=`."""
  for section, names in (('data', ('path', 'outcomes', 'splits', 'features')),
                         ('predict', ('path', 'statics', 'features'))):
    for name in names:
      if str(c.get(section, {}).get(name) or '').startswith('~'):
        c[section][name] = os.path.expanduser(c[section][name])


def outside(workdir: pathlib.Path, c: ConfigDict, *names: str) -> None:
  """Refuses a run's folder inside a folder that one of these fields names: the run would change its own input."""
  for name in names:
    section, field = name.split('.')
    folder = pathlib.Path(c[section][field] or '.').expanduser()
    if c[section][field] and folder.is_dir() and workdir.resolve().is_relative_to(folder.resolve()):
      raise EagrlError(f'--workdir={workdir} lies inside {name}={c[section][field]}, and what the run writes there '
                       'would change its input: choose a folder outside')


def folder_name(field: str, name: str) -> None:
  if name and not re.fullmatch(r'\w[\w.-]*', name):
    raise EagrlError(f'{field}={name!r} names a folder: use letters, digits, dots and dashes')


def seed(field: str, value: int) -> None:
  """Of the generators NumPy refuses a negative one, scikit-learn one of more than 32 bits; JAX cuts that off."""
  if not 0 <= value < 2**32:
    raise EagrlError(f'{field}={value} must lie in 0..{2**32 - 1}')


def divides(field: str, micro: int, batch: int) -> None:
  if micro < 1 or batch % micro:
    raise EagrlError(f'{field}={micro} must divide the {batch} prompts of an update')
