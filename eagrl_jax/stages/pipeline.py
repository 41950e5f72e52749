"""Runs the stages in order. A stage whose config and inputs have not changed is skipped.

A stage's hash covers the config sections it reads and the hashes of the stages before it.
`<stage>/started.json` holds the hash of work under way, so an interrupted stage resumes
from its checkpoints; `<stage>/done.json` is written last. A folder with another hash is
moved to `superseded/`, never overwritten.

Of several processes all run every stage, but those marked `alone`: host work or a model of one host, which process 0
does while the others wait. The run's folder must be one that all of them see.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import importlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
import time
from collections.abc import Iterator

import jax
from absl import logging
from ml_collections import ConfigDict

from eagrl_jax.mesh import local_mesh, make_mesh
from eagrl_jax.stages.context import Context
from eagrl_jax.train import preemption, processes
from eagrl_jax.types import EagrlError


@dataclasses.dataclass(frozen=True)
class Stage:
  name: str
  sections: tuple[str, ...]  # config sections it reads
  needs: tuple[str, ...]  # stages it reads
  alone: bool = False  # of several processes the first one does it


STAGES = (
    Stage('prepare', ('data',), (), alone=True),
    Stage('expert', ('expert',), ('prepare',), alone=True),
    Stage('base', ('lm', 'base', 'prompt', 'reward', 'search'), ('prepare',)),
    Stage('search', ('search', 'reward', 'prompt'), ('prepare', 'expert', 'base')),
    Stage('sft', ('sft', 'prompt'), ('prepare', 'base', 'search')),
    Stage('rl', ('rl', 'reward', 'prompt'), ('prepare', 'expert', 'base', 'sft')),
    Stage('evaluate', ('evaluate', 'reward', 'prompt'), ('prepare', 'expert', 'base', 'search', 'sft', 'rl')),
    Stage('robustness', ('robustness', 'evaluate', 'reward', 'prompt'),
          ('prepare', 'expert', 'base', 'search', 'sft', 'rl')),
    Stage('export', ('export',), ('base', 'sft', 'rl', 'evaluate')),
)
NAMES = tuple(s.name for s in STAGES)
# Stay when a stage goes on.
RESUMED = ('started.json', 'metrics.jsonl', 'nonfinite.jsonl', 'checkpoints', 'checkpoints_corrupt')
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # whatever the file, it is the disk's fault


def stage_hashes(config: ConfigDict) -> dict[str, str]:
  """Hash of every stage: its config sections, the seed, its source files and its inputs."""
  hashes: dict[str, str] = {}
  for stage in STAGES:
    hashes[stage.name] = stage_hash(stage, config, {n: hashes[n] for n in stage.needs})
  return hashes


def stage_hash(stage: Stage, config: ConfigDict, inputs: dict[str, str]) -> str:
  """Hash of one stage that is made from `inputs`, the hashes of the stages it needs."""
  sections = {s: config[s].to_dict() for s in stage.sections}
  if 'rl' in sections:  # where an engine runs and how long it is waited for change no result
    del sections['rl']['rollouts_timeout']
    sections['rl']['rollouts'] = sections['rl']['rollouts'] == 'own'
  content = {'config': sections, 'seed': config.seed, 'inputs': inputs}
  files = source_files(stage.name, config)
  if files is not None:
    content['files'] = [_file_mark(path) for path in files]
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def source_files(stage: str, config: ConfigDict) -> list[str] | None:
  """What a stage reads from outside the run, '' where a field is not set; None for a stage that reads the run alone."""
  if stage == 'prepare':
    return [config.data[k] for k in ('path', 'outcomes', 'splits', 'features')]
  return [config.lm.checkpoint] if stage == 'base' and config.lm.checkpoint != 'tiny' else None


def _file_mark(path: str) -> str:
  """Size and time of a file, or of every file of a folder: enough to notice a change, cheap for gigabytes."""
  root = pathlib.Path(path).expanduser()
  if not path or not root.exists():
    return ''
  hidden = lambda p: any(part.startswith('.') for part in p.relative_to(root).parts)  # .git changes when looked at
  files = sorted(p for p in root.rglob('*') if p.is_file() and not hidden(p)) if root.is_dir() else [root]
  marks = [f'{p.relative_to(root)}:{(stat := p.stat()).st_size}:{stat.st_mtime_ns}' for p in files]
  return hashlib.sha256('\n'.join(marks).encode()).hexdigest()


def selected(config: ConfigDict) -> list[Stage]:
  """`config.target` and the stages that it is made from, in order."""
  if config.target not in NAMES:
    raise EagrlError(f'target={config.target!r} is no stage; choose one of {", ".join(NAMES)}')
  return with_inputs(config.target)


def with_inputs(*names: str) -> list[Stage]:
  """Stages and those that they are made from, in order."""
  needed, wanted = {s.name: s.needs for s in STAGES}, list(names)
  for name in wanted:  # grows as it is walked
    wanted += [n for n in needed[name] if n not in wanted]
  return [s for s in STAGES if s.name in wanted]


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Runs every stage up to `config.target` that is not finished yet."""
  processes.agree(json.dumps(config.to_dict(), sort_keys=True, default=str),
                  '--distributed: the processes were started with different configs; give all of them the same flags')
  hashes = processes.first(lambda: _checked(config))
  mesh = make_mesh(**config.mesh.to_dict())
  stages = selected(config)
  with contextlib.ExitStack() as stack:
    processes.first(lambda: _open(stack, config, workdir))
    processes.agree(str((workdir / 'config.json').exists()),
                    f'--workdir={workdir} is not the same folder in every process; give one on a shared file system')
    stack.enter_context(jax.set_mesh(mesh))  # for kernels that must be told how their inputs are shared out
    context = Context(config, workdir, mesh)
    started = time.time()
    for i, stage in enumerate(stages, 1):
      _run_stage(stage, context, hashes, f'[{i}/{len(stages)}] {stage.name}')
    logging.info('all stages done in %.0f s; results in %s', time.time() - started, workdir)


def _checked(config: ConfigDict) -> dict[str, str]:
  """The stages' hashes of a config that can work on these devices."""
  from eagrl_jax.stages import checks
  checks.check(config)
  make_mesh(**config.mesh.to_dict())
  return stage_hashes(config)


def _open(stack: contextlib.ExitStack, config: ConfigDict, workdir: pathlib.Path) -> None:
  """Makes the run's folder, holds it until `stack` closes, and notes what runs there."""
  with disk_faults(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    stack.enter_context(exclusive(workdir))
    write_json(workdir / 'config.json', config.to_dict())
    write_json(workdir / 'environment.json', environment())


@contextlib.contextmanager
def disk_faults(workdir: pathlib.Path) -> Iterator[None]:
  """Turns what the disk refuses under `workdir` into one line; a file elsewhere, a user's input, stays as it is.

  Raises:
    EagrlError: the disk is full, or something stands in the way of a file of the run.
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
    at = f' ({path.relative_to(workdir.absolute())})' if inside and path != workdir.absolute() else ''
    raise EagrlError(f'--workdir={workdir} cannot be written: {os.strerror(code or errno.EIO)}{at}; make room there '
                     'and run the same command again, nothing finished is lost, or choose another folder') from e


def _run_stage(stage: Stage, context: Context, hashes: dict[str, str], mark: str) -> None:
  """Runs a stage that is not done, in the processes that it takes.

  Raises:
    EagrlError: also for a disk that is full.
    Preempted: the process was asked to end.
  """
  try:
    with disk_faults(context.workdir):
      _do_stage(stage, context, hashes, mark)
  finally:
    preemption.allow()
  if preemption.requested():
    raise preemption.Preempted


def _do_stage(stage: Stage, context: Context, hashes: dict[str, str], mark: str) -> None:
  folder, digest = context.workdir / stage.name, hashes[stage.name]
  if not processes.first(lambda: _claim(folder, digest)):
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
  processes.first(lambda: write_json(folder / 'done.json', done))
  logging.info('%s finished in %.0f s', mark, seconds)


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


def describe(config: ConfigDict, workdir: pathlib.Path, device_bytes: int = 0) -> None:
  """Dry run: prints the resolved config, what would run, sizes and memory. Writes nothing.

  Args:
    device_bytes: memory of a device to plan for; 0 = of the one that is there.
  """
  from eagrl_jax.stages import checks, sizes
  checks.check(config)
  hashes = stage_hashes(config)
  print(json.dumps(config.to_dict(), indent=2, default=str))
  print(f'\nworkdir {workdir}')
  for stage in selected(config):
    folder = workdir / stage.name
    state = 'done' if _read_hash(folder / 'done.json') == hashes[stage.name] else (
        'resume' if _read_hash(folder / 'started.json') == hashes[stage.name] else 'run')
    print(f'  {stage.name:10s} {hashes[stage.name]}  {state}')
  print()
  ready = all(_read_hash(workdir / name / 'done.json') == hashes[name] for name in ('prepare', 'base'))
  run = Context(config, workdir, make_mesh(**config.mesh.to_dict())) if ready else None
  for line in sizes.lines(config, device_bytes, run):
    print(line, flush=True)


def _claim(folder: pathlib.Path, digest: str) -> bool:
  """Marks the folder as ours; False where the stage is done already.

  What another config left there is moved aside, and so are an unfinished run's results.
  A stage that goes on writes its results anew: those that it had time to write before it was cut off may be half of
  one. Checkpoints and metrics stay, a stage resumes from them.
  """
  if _read_hash(folder / 'done.json') == digest:
    return False
  owner = _read_hash(folder / 'started.json')
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


def _read_hash(path: pathlib.Path) -> str | None:
  try:
    return json.loads(path.read_text())['hash']
  except (FileNotFoundError, json.JSONDecodeError, KeyError):
    return None


def write_json(path: pathlib.Path, content: object) -> None:
  """Writes a file that is either the old one or the whole new one."""
  part = path.with_suffix('.part')
  part.write_text(json.dumps(content, indent=2, default=str))
  part.replace(path)


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
