"""A finished run as later work finds it: opened by its own config.json, checked, and added to without overwriting.

Only the mesh is this machine's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from eagrl_jax.ehr import normalise
from eagrl_jax.ehr.records import Cohort
from eagrl_jax.ehr.splits import Splits
from eagrl_jax.expert import train as expert_train
from eagrl_jax.mesh import local_mesh, make_mesh
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages import disk, graph, parts, prepare, settings
from eagrl_jax.stages import expert as expert_stage
from eagrl_jax.stages.context import Context
from eagrl_jax.train import processes
from eagrl_jax.types import EagrlError

STARTED = 'started.json'  # of work under way: what it is made from


@contextlib.contextmanager
def opened(workdir: pathlib.Path, mesh: ConfigDict, needs: tuple[str, ...], dry_run: bool = False
           ) -> Iterator[Context]:
  """Holds a run's folder and gives its own context on this machine's mesh.

  Args:
    needs: stages that must be finished, beside those that they were made from.
    dry_run: nothing will be written: the folder is not held, and may be read-only or in use.

  Raises:
    EagrlError: no run, unfinished or mixed stages, several processes, a disk that is full.
  """
  if processes.count() > 1:
    raise EagrlError('--distributed: a finished run is used by one process; leave it out')
  try:
    saved = json.loads((workdir / 'config.json').read_text())
  except (OSError, ValueError) as e:
    raise EagrlError(f'--workdir={workdir} holds no run: its config.json is missing or unreadable') from e
  config = ConfigDict(_tuples(saved))
  check_run(workdir, config, needs)
  own = make_mesh(**mesh.to_dict())
  held = contextlib.nullcontext() if dry_run else disk.exclusive(workdir)
  with disk.faults(workdir), held, jax.set_mesh(own):
    yield Context(config, workdir, own)


def _tuples(x: Any) -> Any:
  """JSON knows lists alone; settings are hashable."""
  if isinstance(x, dict):
    return {k: _tuples(v) for k, v in x.items()}
  return tuple(_tuples(v) for v in x) if isinstance(x, list) else x


def check_run(workdir: pathlib.Path, config: ConfigDict, needs: tuple[str, ...]) -> None:
  """Refuses stages that are not done, that were made from others than those in the folder, or by another config.

  The source's own files are not needed any more: where they are gone or have changed, that is logged.
  """
  stages, done = graph.with_inputs(*needs), {}
  for name in (stage.name for stage in stages):
    try:
      mark = json.loads((workdir / name / 'done.json').read_text())
      done[name] = {'hash': mark['hash'], 'inputs': dict(mark['inputs'])}
    except (OSError, ValueError, KeyError, TypeError) as e:  # absent, or damaged in whatever way
      raise EagrlError(f'--workdir={workdir}: the stage {name} is not finished; run configs/rl.py there first, with '
                       'its variant and flags') from e
  mixed = [name for name in done if any(done[n]['hash'] != h for n, h in done[name]['inputs'].items() if n in done)]
  if mixed:
    raise EagrlError(f'--workdir={workdir}: {mixed[0]} was made from other stages than those in the folder; run '
                     'configs/rl.py there until it is done')
  for stage in stages:
    if any(graph.stage_hash(stage, config, done[stage.name]['inputs'], before) == done[stage.name]['hash']
           for before in (False, True)):
      continue
    if any(graph.source_files(stage.name, config) or ()):
      logging.info('%s: its source files are not here, or have changed since; what it made of them is used', stage.name)
    else:
      raise EagrlError(f'--workdir={workdir}: config.json is not the config that {stage.name} was made with; run '
                       'configs/rl.py there until it is done')


def stage_hash(workdir: pathlib.Path, stage: str) -> str:
  """What a finished stage was made from."""
  return json.loads((workdir / stage / 'done.json').read_text())['hash']


def expert_prob(run: Context, data: data_lib.Data) -> np.ndarray:
  """Probability by the run's expert of any patients on its features. `[N]`"""
  with jax.set_mesh(local_mesh(1)):
    params = expert_stage.load_members(run, data)
    return expert_train.predict(params, settings.expert(run.config).model, data.expert).mean(0)


def dressed(run: Context, own: Cohort, cohort: Cohort) -> data_lib.Data:
  """Patients on the run's grid and train statistics, all of them in the test part.

  They are shown as the run's own patients were: without features that none of its train patients had, and limits as
  numbers where `own`, the run's cohort, has none.
  """
  window = run.config.data.window_hours
  statistics = normalise.load(run.folder('prepare') / 'statistics.json')
  known = statistics.n[cohort.feature] > 0
  cohort = prepare.counted(cohort.pick(known), 'of a feature that no train patient of the run had', int((~known).sum()),
                           'values')
  if own.censor is None:
    cohort = dataclasses.replace(cohort, censor=None)
  cohort = prepare.with_records(cohort, window)
  if not len(cohort):
    raise EagrlError(f'data.window_hours={window:g} of the run: no patient has a value before it that the run knows')
  visits = data_lib.grid(cohort, run.config.data)
  none = np.zeros(0, np.int64)
  return data_lib.Data(cohort, visits, Splits(none, none, np.arange(len(cohort))),
                       normalise.apply(statistics, visits, cohort))


def fingerprint(*paths: str | pathlib.Path) -> str:
  """SHA-256 of files, and of all files of folders with their places in them."""
  digest = hashlib.sha256()
  for root in map(pathlib.Path, paths):
    for path in graph.files_below(root) if root.is_dir() else [root]:
      digest.update(path.relative_to(root).as_posix().encode())
      with path.open('rb') as file:
        digest.update(hashlib.file_digest(file, 'sha256').digest())
  return digest.hexdigest()


def publish(workdir: pathlib.Path, folder: str, name: str, made_from: dict,
            write: Callable[[pathlib.Path], dict]) -> pathlib.Path:
  """Makes `<workdir>/<folder>/<name>` whole, or leaves it as it was.

  What stands there is kept when it was made from the same, and moved to `superseded/` when not.

  Args:
    made_from: JSON; all that the content depends on.
    write: fills the folder that it is given and returns more entries for its manifest.json. What it keeps in `parts`
      there (stages/parts.py) it finds again after it was interrupted.
  """
  made_from = json.loads(json.dumps(made_from))
  target = workdir / folder / name
  try:
    if json.loads((target / 'manifest.json').read_text())['made_from'] == made_from:
      logging.info('%s/%s: done before from the same, kept', folder, name)
      _end(target)
      return target
  except (OSError, ValueError, KeyError):
    pass
  part = workdir / folder / f'.{name}.part'
  _begin(part, made_from)
  disk.write_json(part / 'manifest.json', {'made_from': made_from, **write(part)})
  if target.exists():
    aside = workdir / 'superseded' / f'{folder}-{name}-{time.time_ns()}'
    aside.parent.mkdir(exist_ok=True)
    target.rename(aside)
    logging.info('%s/%s was made from something else: moved to %s', folder, name, aside.relative_to(workdir))
  part.rename(target)
  _end(target)
  return target


def _end(target: pathlib.Path) -> None:
  """What is whole needs no parts; they go last, so that a kill at no moment costs what is in them."""
  shutil.rmtree(target / parts.FOLDER, ignore_errors=True)
  (target / STARTED).unlink(missing_ok=True)


def _begin(part: pathlib.Path, made_from: dict) -> None:
  """An empty folder, but for the parts that a run that was cut short made from the same."""
  try:
    same = json.loads((part / STARTED).read_text()) == made_from
  except (OSError, ValueError):
    same = False
  if not same:
    shutil.rmtree(part, ignore_errors=True)
  part.mkdir(parents=True, exist_ok=True)
  for path in part.iterdir():
    if path.is_file():
      path.unlink()
    elif path.name != parts.FOLDER:
      shutil.rmtree(path)
  disk.write_json(part / STARTED, made_from)
