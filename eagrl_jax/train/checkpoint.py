"""Orbax checkpoints of a training run, and of weights handed from stage to stage.

Random keys are never stored: they are functions of (seed, stage, step, example).
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from eagrl_jax.types import EagrlError, Params


class Checkpoints:
  """The newest `keep` checkpoints of one stage, under `<folder>/<step>`.

  Saving waits until the files are on disk: an update donates the state's buffers, which a background writer might
  still be reading. A save cut short leaves no step behind, so resuming takes the one before.
  """

  def __init__(self, folder: str | pathlib.Path, keep: int = 2):
    if keep < 1:
      raise EagrlError(f'checkpoint.keep={keep} must be at least 1')
    self.folder = pathlib.Path(folder).absolute()
    options = ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.LatestN(keep), enable_async_checkpointing=False
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
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position))
    latest = self.latest_step()
    if (latest is not None and step <= latest) or not self._manager.save(step, args=args):
      raise EagrlError(
          f'checkpoint: {self.folder} already holds step {latest}, step {step} cannot follow it; resume from it,'
          ' or choose another --workdir')

  def restore(self, like: Any) -> tuple[Any, dict[str, Any], int] | None:
    """State, data position and step of the newest checkpoint; None when there is none.

    Args:
      like: tree of `jax.ShapeDtypeStruct` with shardings (`train.state.abstract`), or a state of the same layout.

    Raises:
      EagrlError: the newest checkpoint cannot be read, or holds another model.
    """
    step = self.latest_step()
    if step is None:
      return None
    args = ocp.args.Composite(state=ocp.args.StandardRestore(_abstract(like)), position=ocp.args.JsonRestore())
    try:
      out = self._manager.restore(step, args=args)
    except (ValueError, OSError, KeyError, TypeError) as error:
      raise _unreadable(self.folder / str(step), error) from error
    return out.state, out.position, step

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
  if folder.exists():
    raise EagrlError(f'checkpoint: {folder} exists and is not written over; remove it or choose another --workdir')
  with ocp.StandardCheckpointer() as writer:
    writer.save(folder, params)
    writer.wait_until_finished()


def load_params(folder: str | pathlib.Path, like: Params) -> Params:
  """Reads what `save_params` wrote.

  Args:
    like: tree of `jax.ShapeDtypeStruct` (with shardings, to restore onto a mesh) or of arrays of the same layout.

  Raises:
    EagrlError: nothing there, unreadable, or another model.
  """
  folder = pathlib.Path(folder).absolute()
  if not folder.is_dir():
    raise EagrlError(f'checkpoint: {folder} does not exist; run the stage that writes it')
  with ocp.StandardCheckpointer() as reader:
    try:
      return reader.restore(folder, _abstract(like))
    except (ValueError, OSError, KeyError, TypeError) as error:
      raise _unreadable(folder, error) from error


def _abstract(tree: Any) -> Any:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, 'sharding', None)), tree)


def _unreadable(folder: pathlib.Path, error: Exception) -> EagrlError:
  reason = str(error)
  if 'stored shape' in reason or 'Structure mismatch' in reason:
    return EagrlError(f'checkpoint: {folder} holds a model of another size; set the same --config.lm as the run that'
                      ' wrote it, or choose another --workdir')
  return EagrlError(f'checkpoint: {folder} is corrupt ({type(error).__name__}); delete this folder to resume from the'
                    ' one before it')
