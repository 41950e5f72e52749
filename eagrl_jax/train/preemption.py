"""SIGTERM, by which a cluster takes its machine back, and Ctrl-C: work ends where it can go on.

Training, search and evaluation defer the signal (`defer`), ask once a step or batch (`requested`), save and raise
`Preempted`. Anywhere else there is nothing to save and it is raised at once. A process that gets to neither, because it
compiles or waits for another one, is ended after `GRACE` seconds, though never while it saves: what a run leaves is the
same as after a SIGKILL, of which it loses the steps since its last checkpoint, or a batch of patients, and no more.
After SIGTERM the process exits with 0, after Ctrl-C with 130; a second Ctrl-C does not wait.

Nothing here imports jax before a step asks: a signal that comes while the program is loading is heard as well.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

GRACE = 30.0  # seconds; clouds announce an end 30 s ahead, Slurm as many as the job asks for
LINE = 'eagrl_jax: stopped; nothing finished is lost, the same command goes on from here'
WAIT = 'eagrl_jax: stopping where it can go on from; Ctrl-C again ends at once'


class Preempted(Exception):
  """The process was asked to end; what is worth keeping is on disk."""


class _State:
  listening = False
  asked = False  # this process has had the signal
  raised = False  # and has acted on it
  status = 0  # with which it ends
  deferred = False  # training is under way and asks for itself
  saving = False
  several = False  # one of several processes
  speaks = True
  said = False


_state = _State()


def listen(several: bool = False, speaks: bool = True) -> None:
  """Takes SIGTERM and Ctrl-C over; a second call only sets who this process is.

  Where Ctrl-C is ignored, as in the background of a script, it stays so.

  Args:
    several: whether it is one of several processes, which cannot leave one by one.
    speaks: whether it prints the line that says how to go on.
  """
  _state.several, _state.speaks = several, speaks
  if _state.listening:
    return
  _state.listening = True
  # Python runs a handler between two bytecodes of the main thread, never inside a compilation: a thread hears it there.
  read, write = os.pipe()
  os.set_blocking(write, False)
  threading.Thread(target=_watch, args=(read,), daemon=True).start()
  signal.signal(signal.SIGTERM, _heard)
  if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, _heard)
  signal.set_wakeup_fd(write, warn_on_full_buffer=False)


def requested(after: Any = None) -> bool:
  """Whether to stop now. The same answer in all of several processes, of which each must ask at the same step.

  One flag is gathered from the processes a step; a single process only reads its own.

  Args:
    after: what the step computes. Several processes wait for it: a CPU runs two programs at once, in any order, and
      their collectives would take each other's messages, for ever.
  """
  from eagrl_jax.train import processes
  if processes.count() == 1:
    return _state.asked
  import jax
  from jax.experimental import multihost_utils
  jax.block_until_ready(after)
  return bool(np.any(multihost_utils.process_allgather(np.asarray(_state.asked))))


def defer() -> None:
  """From here on the signal waits for `requested`."""
  _state.deferred = True


def allow() -> None:
  """From here on the signal ends the process at once; one that came before is answered by `requested`."""
  _state.deferred = False


@contextlib.contextmanager
def saving() -> Iterator[None]:
  """Around the writing of a checkpoint, which is waited for."""
  _state.saving = True
  try:
    yield
  finally:
    _state.saving = False


def explains(error: BaseException | None) -> bool:
  """Whether an error that ends the process is the signal's doing, also where a library wrapped it.

  Of several processes one that has had the signal fails for want of those that have left already.
  """
  from eagrl_jax.types import EagrlError
  if _state.several and _state.asked and (type(error).__name__ == 'Elsewhere' or not isinstance(error, EagrlError)):
    return True
  while error is not None and not isinstance(error, Preempted):
    error = error.__cause__ or error.__context__
  return error is not None


def status() -> int:
  """With what a process ends that the signal has stopped."""
  return _state.status


def say() -> None:
  """Prints, once, how to go on."""
  if _state.speaks and not _state.said:
    _state.said = True
    print(LINE, file=sys.stderr, flush=True)


def _ask(number: int) -> None:
  _state.status = _state.status if _state.asked or number == signal.SIGTERM else 130
  _state.asked = True


def _heard(number: int, _: Any) -> None:
  _ask(number)
  again, _state.raised = _state.raised, True
  if not (again or _state.deferred or _state.several):
    raise Preempted


def _watch(pipe: int) -> None:
  end = None  # of the grace
  while select.select([pipe], [], [], None if end is None else max(0.0, end - time.monotonic()))[0]:
    number = os.read(pipe, 1)[0]
    if number == signal.SIGINT and end is not None:
      break
    if number in (signal.SIGTERM, signal.SIGINT) and end is None:
      _ask(number)
      if number == signal.SIGINT and _state.deferred and _state.speaks:
        print(WAIT, file=sys.stderr, flush=True)
      # Several processes wait for each other in collectives that nothing but the end of one interrupts.
      end = time.monotonic() + (GRACE if _state.deferred or not _state.several else 0)
  while _state.saving:
    time.sleep(0.05)
  say()
  os._exit(_state.status)
