"""Runs the stages in order. A stage whose config and inputs have not changed is skipped.

Of several processes all run every stage, but those marked `alone`: host work or a model of one host, which process 0
does while the others wait. The run's folder must be one that all of them see.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping

import jax
from absl import logging
from ml_collections import ConfigDict

from eagrl_jax.evaluation import files, provenance
from eagrl_jax.mesh import local_mesh, make_mesh
from eagrl_jax.stages import disk, graph
from eagrl_jax.stages.context import Context
from eagrl_jax.train import preemption, processes
from eagrl_jax.types import EagrlError


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Runs every stage up to `config.target` that is not finished yet."""
  processes.agree(json.dumps(config.to_dict(), sort_keys=True, default=str),
                  '--distributed: the processes were started with different configs; give all of them the same flags')
  hashes = processes.first(lambda: _checked(config, workdir))
  mesh = make_mesh(**config.mesh.to_dict())
  stages = graph.selected(config)
  with contextlib.ExitStack() as stack:
    processes.first(lambda: _open(stack, config, workdir, hashes))
    processes.agree(str((workdir / 'config.json').exists()),
                    f'--workdir={workdir} is not the same folder in every process; give one on a shared file system')
    stack.enter_context(jax.set_mesh(mesh))  # for kernels that must be told how their inputs are shared out
    context = Context(config, workdir, mesh)
    started = time.time()
    for i, stage in enumerate(stages, 1):
      _run_stage(stage, context, hashes, f'[{i}/{len(stages)}] {stage.name}')
    logging.info('all stages done in %.0f s; results in %s', time.time() - started, workdir)


def _checked(config: ConfigDict, workdir: pathlib.Path) -> dict[str, str]:
  """The stages' hashes of a config that can work on these devices and in this folder."""
  from eagrl_jax.stages import checks, fields
  checks.check(config)
  fields.outside(workdir, config, 'data.path', 'data.outcomes', 'data.splits', 'data.features',
                 *(() if config.lm.checkpoint == 'tiny' else ('lm.checkpoint',)))
  if doubt := checks.doubtful_rates(config):
    logging.log_first_n(logging.WARNING, '%s', 1, doubt)
  hashes = graph.stage_hashes(config)
  others = [name for name in _of_other_settings(config, workdir, hashes) if name != config.target]
  if others and not config.get('remake', True):
    raise EagrlError(f'--workdir={workdir}: its {others[0]} was made with other settings{_differing(config, workdir)}; '
                     'give the variant and the flags of that run, or --config.remake=True to make it again')
  return hashes


def _of_other_settings(config: ConfigDict, workdir: pathlib.Path, hashes: Mapping[str, str]) -> list[str]:
  """Selected stages that are finished in the folder with another hash."""
  try:
    found = {stage.name: disk.read_hash(workdir / stage.name / 'done.json') for stage in graph.selected(config)}
  except OSError:  # a file where a folder should be: told where it is opened to be written
    return []
  return [name for name, digest in found.items() if digest not in (None, hashes[name])]


def _differing(config: ConfigDict, workdir: pathlib.Path) -> str:
  """In brackets the first fields, without values, in which the folder's config is another; '' where none is known."""
  try:
    theirs = dict(files.flat(files.read_json(workdir / 'config.json') or {}, share=False))
  except EagrlError:
    return ''
  ours = dict(files.flat(json.loads(json.dumps(config.to_dict(), default=str)), share=False))
  apart = [name for name in ours if name not in ('target', 'remake') and theirs.get(name, ours[name]) != ours[name]]
  return f' ({", ".join(apart[:4])}{", …" if len(apart) > 4 else ""})' if theirs and apart else ''


def _open(stack: contextlib.ExitStack, config: ConfigDict, workdir: pathlib.Path, hashes: dict[str, str]) -> None:
  """Makes the run's folder, holds it until `stack` closes, and notes what runs there."""
  with disk.faults(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    stack.enter_context(disk.exclusive(workdir))
    if _of_other_settings(config, workdir, hashes) and (workdir / 'config.json').exists():
      attic = workdir / 'superseded' / f'config-{time.time_ns()}.json'  # beside the stages that it made
      attic.parent.mkdir(exist_ok=True)
      shutil.copyfile(workdir / 'config.json', attic)
    disk.write_json(workdir / provenance.HASHES, hashes)  # first: cut off here, results look old rather than new
    disk.write_json(workdir / 'config.json', config.to_dict())
    disk.write_json(workdir / 'environment.json', environment())


def _run_stage(stage: graph.Stage, context: Context, hashes: dict[str, str], mark: str) -> None:
  """Runs a stage that is not done, in the processes that it takes.

  Raises:
    EagrlError: also for a disk that is full.
    Preempted: the process was asked to end.
  """
  try:
    with disk.faults(context.workdir):
      _do_stage(stage, context, hashes, mark)
  finally:
    preemption.allow()
  if preemption.requested():
    raise preemption.Preempted


def _do_stage(stage: graph.Stage, context: Context, hashes: dict[str, str], mark: str) -> None:
  folder, digest = context.workdir / stage.name, hashes[stage.name]
  if not processes.first(lambda: disk.claim(folder, digest)):
    logging.info('%s: done before, skipped', mark)
    return
  logging.info(mark)
  begun = time.time()
  work = importlib.import_module(f'eagrl_jax.stages.{stage.name}').run
  if stage.alone and processes.count() > 1:
    processes.first(lambda: work(dataclasses.replace(context, mesh=local_mesh())))
  else:
    work(context)
  seconds = round(time.time() - begun, 1)
  done = {'hash': digest, 'seconds': seconds, 'inputs': {n: hashes[n] for n in stage.needs}}
  processes.first(lambda: disk.finish(folder, done))
  logging.info('%s finished in %.0f s', mark, seconds)


def describe(config: ConfigDict, workdir: pathlib.Path, device_bytes: int = 0) -> None:
  """Dry run: prints the resolved config, what would run, sizes and memory. Writes nothing.

  Args:
    device_bytes: memory of a device to plan for; 0 = of the one that is there.
  """
  from eagrl_jax.stages import sizes
  hashes = _checked(config, workdir)
  print(json.dumps(config.to_dict(), indent=2, default=str))
  print(f'\nworkdir {workdir}')
  for stage in graph.selected(config):
    folder = workdir / stage.name
    state = 'done' if disk.read_hash(folder / 'done.json') == hashes[stage.name] else (
        'resume' if disk.read_hash(folder / 'started.json') == hashes[stage.name] else 'run')
    print(f'  {stage.name:10s} {hashes[stage.name]}  {state}')
  print()
  ready = all(disk.read_hash(workdir / name / 'done.json') == hashes[name] for name in ('prepare', 'base'))
  mesh = make_mesh(**config.mesh.to_dict())
  with jax.set_mesh(mesh):  # as `run` does: without it several devices are given another program
    for line in sizes.lines(config, device_bytes, Context(config, workdir, mesh) if ready else None):
      print(line, flush=True)


def environment() -> dict:
  """Versions, devices and the commit that a result belongs to."""
  packages = ('eagrl-jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'transformers', 'numpy')
  versions = {}
  for p in packages:
    try:
      versions[p] = importlib.metadata.version(p)
    except importlib.metadata.PackageNotFoundError:
      versions[p] = 'not installed'
  here = pathlib.Path(__file__).parent
  git = subprocess.run(['git', '-C', str(here), 'rev-parse', 'HEAD'], capture_output=True, text=True, check=False)
  return {'python': platform.python_version(), 'machine': platform.machine(), 'cores': os.cpu_count(),
          'devices': [d.device_kind for d in jax.devices()], 'processes': jax.process_count(),
          'versions': versions, 'git': git.stdout.strip() or None}
