"""A run's folder: held by one run, claimed stage by stage, written file by whole file.

`<stage>/started.json` holds the hash of work under way, so an interrupted stage resumes from its checkpoints or parts;
`<stage>/done.json` is written last. A folder with another hash is moved to `superseded/`, never overwritten.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import pathlib
import re
import shutil
import time
from collections.abc import Iterator
from typing import Any

from absl import logging

from eagrl_jax.types import EagrlError, made_again

BEST = 'best'  # weights of the best step so far, which a policy is made from
# Stay when a stage goes on; `rollouts` is what a server has open, `tree.json` is of the first of a search's parts.
RESUMED = ('started.json', 'metrics.jsonl', 'nonfinite.jsonl', 'checkpoints', 'checkpoints_corrupt', 'rollouts',
           'rollouts.new', 'parts', BEST, 'tree.json')
MARKS = ('started.json', 'done.json')
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # whatever the file, it is the disk's fault


@contextlib.contextmanager
def exclusive(workdir: pathlib.Path) -> Iterator[None]:
  """Holds a run folder for this process; the lock ends with the process, whatever ends it.

  Raises:
    EagrlError: another run holds it.
  """
  with (workdir / '.lock').open('w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      raise EagrlError(f'--workdir={workdir} is in use by another run; wait for it, or choose another folder') from e
    except OSError:
      logging.warning('%s lies on a file system without locks: nothing stops a second run there', workdir)
    yield


@contextlib.contextmanager
def faults(workdir: pathlib.Path) -> Iterator[None]:
  """Turns what the disk refuses under `workdir` into one line; a file elsewhere, a user's input, stays as it is.

  Raises:
    EagrlError: the disk is full, something stands in the way of a file of the run, or one of a finished stage is gone.
  """
  try:
    yield
  except EagrlError:
    raise
  except Exception as e:
    # Orbax and libraries in Rust raise types of their own and name the system's error in the text.
    named = re.search(r"(?:os_error_code='|os error )(\d+)", str(e))
    if not isinstance(e, OSError) and not named:
      raise
    code = int(named[1]) if named else getattr(e, 'errno', None)
    path = pathlib.Path(os.fsdecode(getattr(e, 'filename', None) or '')).absolute()
    inside = path.is_relative_to(workdir.absolute()) and bool(getattr(e, 'filename', None))
    if not inside and code not in FULL:
      raise
    lost = path.relative_to(workdir.absolute()).parts if inside and code == errno.ENOENT else ()
    if len(lost) > 1 and (workdir / lost[0] / 'done.json').exists():
      raise EagrlError(f'--workdir={workdir}: {"/".join(lost)} is missing; {made_again(lost[0])}') from e
    at = f' ({path.relative_to(workdir.absolute())})' if inside and path != workdir.absolute() else ''
    raise EagrlError(f'--workdir={workdir} cannot be written: {os.strerror(code or errno.EIO)}{at}; make room there '
                     'and run the same command again, nothing finished is lost, or choose another folder') from e


def claim(folder: pathlib.Path, digest: str) -> bool:
  """Marks the folder as ours; False where the stage is done already.

  What another config left there is moved aside, and so are an unfinished run's results; what no run made is refused.
  A stage that goes on writes its results anew: those that it had time to write before it was cut off may be half of
  one. Checkpoints, parts and metrics stay, a stage resumes from them.
  """
  if read_hash(folder / 'done.json') == digest:
    _drop_parts(folder)
    return False
  owner = read_hash(folder / 'started.json')
  ours = {_part(folder / name).name for name in MARKS}  # left where the first mark was cut short
  if folder.is_dir() and any(path.name not in ours for path in folder.iterdir()) and not any(
      (folder / name).exists() for name in MARKS):
    raise EagrlError(f'--workdir={folder.parent} holds a folder {folder.name} that no run has made; choose '
                     'another')
  attic = folder.parent / 'superseded' / f'{folder.name}-{owner or "unknown"}-{time.time_ns()}'
  if folder.exists() and owner != digest:
    attic.parent.mkdir(exist_ok=True)
    folder.rename(attic)
    logging.info('%s belongs to another config: moved to %s', folder.name, attic.relative_to(folder.parent))
  elif folder.exists():
    for path in folder.iterdir():
      if path.name not in RESUMED and not path.name.startswith('events.'):
        attic.mkdir(parents=True, exist_ok=True)
        path.rename(attic / path.name)
  folder.mkdir(parents=True, exist_ok=True)
  write_json(folder / 'started.json', {'hash': digest})
  return True


def finish(folder: pathlib.Path, done: dict[str, Any]) -> None:
  """Marks the stage as done; what it was made of goes after that, so that a kill at no moment costs it."""
  write_json(folder / 'done.json', done)
  _drop_parts(folder)


def _drop_parts(folder: pathlib.Path) -> None:
  for name in ('parts', BEST):
    shutil.rmtree(folder / name, ignore_errors=True)


def read_hash(path: pathlib.Path) -> str | None:
  """Of a stage's mark; None without one, and of a damaged one, whatever is in it."""
  try:
    found = json.loads(path.read_text())['hash']
  except (FileNotFoundError, ValueError, KeyError, TypeError):  # no text, no JSON, no object
    return None
  return found if isinstance(found, str) and found.isalnum() else None  # it becomes part of a folder's name


def write_json(path: pathlib.Path, content: object) -> None:
  """`write_text` of the content; what is not finite becomes null."""
  write_text(path, json.dumps(_finite(content), indent=2, default=str, allow_nan=False))


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file that is either the old one or the whole new one."""
  part = _part(path)
  try:
    part.write_text(text)
    part.replace(path)
  except OSError:
    part.unlink(missing_ok=True)
    raise


def _part(path: pathlib.Path) -> pathlib.Path:
  return path.with_suffix('.part')


def _finite(content: Any) -> Any:
  """JSON has no NaN and no infinity."""
  if isinstance(content, dict):
    return {key: _finite(value) for key, value in content.items()}
  if isinstance(content, list | tuple):
    return [_finite(value) for value in content]
  return None if isinstance(content, float) and not math.isfinite(content) else content
