"""Orbax checkpoints of a training run, and of weights handed from stage to stage.

Random keys are never stored: they are functions of (seed, stage, step, example). Of several processes all call each
function here, each writes and reads its own shards, and the folder is one that all of them see.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import preservation_policy

from eagrl_jax.train import checksums, preemption, processes
from eagrl_jax.types import EagrlError, Params, made_again

READ_ERRORS = (ValueError, OSError, KeyError, TypeError)  # what Orbax raises for a missing or broken file


class CorruptError(EagrlError):
  """The files of a checkpoint are not what was written."""


class Checkpoints:
  """The newest `keep` checkpoints of one stage, under `<folder>/<step>`.

  Saving waits until the files are on disk: an update donates the state's buffers, which a background writer might
  still be reading. A save cut short leaves no step behind, so resuming takes the one before; a step whose files have
  changed since is set aside, and the one before is taken as well.
  """

  def __init__(self, folder: str | pathlib.Path, keep: int = 2):
    if keep < 1:
      raise EagrlError(f'checkpoint.keep={keep} must be at least 1')
    self.folder = pathlib.Path(folder).absolute()
    processes.first(lambda: self.folder.mkdir(parents=True, exist_ok=True))
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.LatestN(keep), enable_async_checkpointing=False, create=False,
        multiprocessing_options=_taking_part()
    )
    self._manager = ocp.CheckpointManager(self.folder, options=options)

  def latest_step(self) -> int | None:
    """Newest complete step, None when there is none."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, position: dict[str, Any]) -> None:
    """Writes the state and the position in the data (plain JSON values) as `step`.

    Raises:
      EagrlError: `step` is already there; nothing is written over.
    """
    args = ocp.args.Composite(state=ocp.args.StandardSave(_writable(state)), position=ocp.args.JsonSave(position))
    latest = self.latest_step()
    with preemption.saving():
      if (latest is not None and step <= latest) or not self._manager.save(step, args=args):
        raise EagrlError(
            f'checkpoint: {self.folder} already holds step {latest}, step {step} cannot follow it; resume from it,'
            ' or choose another --workdir')
      processes.first(lambda: checksums.write(self.folder / str(step)))

  def restore(self, like: Any) -> tuple[Any, dict[str, Any], int] | None:
    """State, data position and step of the newest sound checkpoint; None when there is none.

    A corrupt one is moved to `<folder>_corrupt`, with a warning that names it.

    Args:
      like: tree of `jax.ShapeDtypeStruct` with shardings (`train.state.abstract`), or a state of the same layout.

    Raises:
      EagrlError: none is sound although there are some, or the newest holds another model.
    """
    aside: list[pathlib.Path] = []
    while (step := self.latest_step()) is not None:
      try:
        return *self._read(step, like), step
      except CorruptError as error:
        aside.append(self._set_aside(step))
        logging.warning('%s; moved to %s', error, aside[-1])
    if aside:
      raise EagrlError(f'checkpoint: no sound checkpoint is left, the corrupt ones are in {aside[-1].parent}; restore '
                       'them from a backup, or run again to begin this stage anew')
    return None

  def _read(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
    folder = self.folder / str(step)
    if fault := processes.first(lambda: checksums.broken(folder)):
      raise CorruptError(f'checkpoint: {folder} is corrupt ({fault})')
    _check_layout(folder / 'state', folder, like)
    args = ocp.args.Composite(state=ocp.args.StandardRestore(_abstract(like)), position=ocp.args.JsonRestore())
    try:
      out = self._manager.restore(step, args=args)
    except READ_ERRORS as error:
      raise _corrupt(folder, error) from error
    return out.state, out.position

  def _set_aside(self, step: int) -> pathlib.Path:
    """Moves a step out of the way, beside what was moved before; nothing is deleted."""
    target = self.folder.with_name(f'{self.folder.name}_corrupt')

    def move() -> str:
      place, n = target / str(step), 1
      while place.exists():
        place, n = target / f'{step}_{n}', n + 1
      target.mkdir(exist_ok=True)
      (self.folder / str(step)).rename(place)
      return place.name

    name = processes.first(move)
    self._manager.reload()
    return target / name

  def close(self) -> None:
    """Releases Orbax's threads."""
    self._manager.close()

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *_) -> None:
    self.close()


def save_params(folder: str | pathlib.Path, params: Params) -> None:
  """Writes weights alone, for the next stage.

  Raises:
    EagrlError: the folder exists; nothing is written over.
  """
  folder = pathlib.Path(folder).absolute()
  if processes.first(folder.exists):
    raise EagrlError(f'checkpoint: {folder} exists and is not written over; remove it or choose another --workdir')
  with ocp.StandardCheckpointer(multiprocessing_options=_taking_part()) as writer:
    writer.save(folder, _writable(params))
    writer.wait_until_finished()
  processes.first(lambda: checksums.write(folder))


def load_params(folder: str | pathlib.Path, like: Params, stage: str) -> Params:
  """Reads what `save_params` wrote.

  Args:
    like: tree of `jax.ShapeDtypeStruct` (with shardings, to restore onto a mesh) or of arrays of the same layout.
    stage: which has written it and can do so again.

  Raises:
    EagrlError: nothing there, unreadable, or another model.
  """
  folder = pathlib.Path(folder).absolute()
  if not folder.is_dir():
    raise EagrlError(f'checkpoint: {folder} does not exist; {made_again(stage)}')
  try:
    if fault := processes.first(lambda: checksums.broken(folder)):
      raise CorruptError(f'checkpoint: {folder} is corrupt ({fault})')
    _check_layout(folder, folder, like)
    with ocp.StandardCheckpointer(multiprocessing_options=_taking_part()) as reader:
      try:
        return reader.restore(folder, _abstract(like))
      except READ_ERRORS as error:
        raise _corrupt(folder, error) from error
  except CorruptError as error:
    raise EagrlError(f'{error}; {made_again(stage)}') from error


def _taking_part() -> ocp.options.MultiprocessingOptions:
  """Whom Orbax waits for: all processes, or process 0 where it works alone."""
  if not processes.working_alone():
    return ocp.options.MultiprocessingOptions()
  return ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix='alone')


def _writable(tree: Any) -> Any:
  """Among several processes Orbax takes arrays on one process's devices for a mistake; of numpy it takes them."""
  return jax.device_get(tree) if processes.working_alone() else tree


def _abstract(tree: Any) -> Any:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, 'sharding', None)), tree)


def _layout(tree: Any) -> dict[tuple[str, ...], tuple[int, ...]]:
  """Shape by path; the names are the same for a state and for what Orbax says it stored."""
  name = lambda entry: str(getattr(entry, 'name', getattr(entry, 'key', getattr(entry, 'idx', entry))))
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {tuple(map(name, path)): tuple(leaf.shape) for path, leaf in leaves}


def _check_layout(folder: pathlib.Path, shown: pathlib.Path, like: Any) -> None:
  with ocp.StandardCheckpointer(multiprocessing_options=_taking_part()) as reader:
    try:
      stored = _layout(reader.metadata(folder).item_metadata.tree)
    except (*READ_ERRORS, AttributeError) as error:
      raise _corrupt(shown, error) from error
  if stored != _layout(like):
    raise EagrlError(f'checkpoint: {shown} holds another model or optimizer; set the --config.lm and optimizer of the'
                     ' run that wrote it, or choose another --workdir')


def _corrupt(folder: pathlib.Path, error: Exception) -> CorruptError:
  return CorruptError(f'checkpoint: {folder} is corrupt ({type(error).__name__})')
