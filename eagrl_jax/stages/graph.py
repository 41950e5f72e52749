"""What stages there are, what each is made from, and the hash that tells whether it must be made again.

A stage's hash covers the config sections it reads, its files outside the run, and the hashes of the stages before it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping

from ml_collections import ConfigDict

from eagrl_jax.ehr.sources import physionet2012
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
          ('prepare', 'expert', 'base', 'search', 'sft', 'rl', 'evaluate')),
    Stage('export', ('export',), ('base', 'sft', 'rl', 'evaluate')),
)
HASHED = 64 << 20  # bytes of a source file up to which its content decides whether it has changed
NAMES = tuple(s.name for s in STAGES)


# Fields that came later, with the value of before: a run that leaves them so keeps its hashes.
SINCE: dict[str, dict[str, object]] = {
    'evaluate': {'threshold': 0.5}, 'prompt': {'may_refuse': True},
    'rl': {'resample': 0, 'validate_every': 0, 'validate_patients': 200, 'keep': 'last'},
    'data': {'question': '', 'quantity': '', 'time_unit': 'hours', 'ranges': 'reference'}}


# Fields that change no result, with the value that counts for them: the default, with which hashes were made before.
SAME: dict[str, dict[str, object]] = {
    'expert': {'checkpoint_every': 10}, 'base': {'checkpoint_every': 100}, 'sft': {'checkpoint_every': 100},
    'rl': {'checkpoint_every': 10}}


def new_fields(config: ConfigDict, section: str) -> dict[str, object]:
  """Those of `SINCE` that are set otherwise."""
  return {k: config[section][k] for k, old in SINCE[section].items() if config[section].get(k, old) != old}


def stage_hashes(config: ConfigDict, known: Mapping[str, str] | None = None) -> dict[str, str]:
  """Hash of every stage: its config sections, the seed, its source files and its inputs.

  Args:
    known: hashes that were computed before, whose source files are not looked at again.
  """
  hashes: dict[str, str] = {}
  for stage in STAGES:
    if known and stage.name in known:
      hashes[stage.name] = known[stage.name]
    else:
      hashes[stage.name] = stage_hash(stage, config, {n: hashes[n] for n in stage.needs})
  return hashes


def stage_hash(stage: Stage, config: ConfigDict, inputs: dict[str, str], before: bool = False) -> str:
  """Hash of one stage that is made from `inputs`, the hashes of the stages it needs.

  Args:
    before: as it was until 2026-11-30, when what is in `SAME` counted, and the name of an engine's model.
  """
  sections = {s: config[s].to_dict() for s in stage.sections}
  if 'rl' in sections:  # where an engine runs, by what name and how long it is waited for change no result
    del sections['rl']['rollouts_timeout']
    sections['rl']['rollouts'] = sections['rl']['rollouts'] == 'own'
    sections['rl'] |= {} if before else {'rollouts_model': ''}
    if not config.rl.get('validate_every'):  # nobody is asked, however many there are
      sections['rl'].pop('validate_patients', None)
  for name in () if before else SAME.keys() & sections.keys():
    sections[name] |= SAME[name]
  for name in SINCE.keys() & sections.keys():
    for field in SINCE[name].keys() - new_fields(config, name).keys():
      sections[name].pop(field, None)
  content = {'config': sections, 'seed': config.seed, 'inputs': inputs}
  files = source_files(stage.name, config)
  if files is not None:
    content['files'] = [_file_mark(path) for path in files]
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def source_files(stage: str, config: ConfigDict) -> list[str] | None:
  """What a stage reads from outside the run, '' where a field is not set; None for a stage that reads the run alone."""
  if stage == 'prepare':
    return [*cohort_files(config.data), config.data.splits, config.data.features]
  return [config.lm.checkpoint] if stage == 'base' and config.lm.checkpoint != 'tiny' else None


def cohort_files(data: ConfigDict) -> list[str]:
  """The path of a source and its outcomes, also those that are found outside the path without being named."""
  if data.source != 'physionet2012' or data.outcomes or not data.path:
    return [data.path, data.outcomes]
  found = [str(p) for p in physionet2012.outcomes_beside(data.path) if not p.is_relative_to(data.path)]
  return [data.path, *(found or [''])]


def _file_mark(path: str) -> str:
  """What a file holds, or every file of a folder; of large ones size and time, which are cheap for gigabytes.

  A copy of the data, or a disk that is mounted anew, has other times and the same patients.
  """
  root = pathlib.Path(path).expanduser()
  if not path or not root.exists():
    return ''
  hidden = lambda p: any(part.startswith('.') for part in p.relative_to(root).parts)  # .git changes when looked at
  files = [p for p in files_below(root) if not hidden(p)] if root.is_dir() else [root]
  marks = [f'{p.relative_to(root)}:{_content(p, (stat := p.stat()).st_size, stat.st_mtime_ns)}' for p in files]
  return hashlib.sha256('\n'.join(marks).encode()).hexdigest()


def files_below(folder: pathlib.Path) -> list[pathlib.Path]:
  """Every file in a folder, in order; folders that are links are gone into, but none into itself."""
  return sorted(_walk(folder, frozenset()))


def _walk(folder: pathlib.Path, above: frozenset[pathlib.Path]) -> Iterator[pathlib.Path]:
  real = folder.resolve()
  if real in above:
    return
  try:
    found = list(folder.iterdir())
  except OSError:  # its reader says what is wrong with it
    return
  for path in found:
    if path.is_dir():
      yield from _walk(path, above | {real})
    elif path.is_file():
      yield path


@functools.cache
def _content(path: pathlib.Path, size: int, modified: int) -> str:
  try:
    with path.open('rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest() if size <= HASHED else f'{size}:{modified}'
  except OSError:  # its reader says what is wrong with it
    return f'{size}:{modified}'


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
