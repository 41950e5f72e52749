"""Several processes as one program: who writes, who decides, and how an array spread over hosts is read.

Every process runs the same steps. What the disk says is read by process 0 and told to the others (`first`), so that
all of them take the same decisions; files are written by process 0.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from eagrl_jax import mesh as mesh_lib
from eagrl_jax.types import EagrlError

T = TypeVar('T')
LONGEST_MS = 7 * 24 * 3600 * 1000  # that one process may work while the others wait
HEARTBEAT = 300  # seconds of silence that end a run; half is between two beats, and loaded machines stall for a minute
BLOCK = 1024  # bytes; a message is padded to a multiple of it, to bound recompilation

_alone = False  # process 0 is working while the others wait
_number = itertools.count()


class Elsewhere(EagrlError):
  """Process 0 has met the error and reports it; this process only has to stop."""


def start(coordinator: str, processes: int, index: int) -> None:
  """`jax.distributed.initialize`, once and before any device is used.

  Args:
    coordinator: `host:port` of process 0; empty = what the cluster (TPU, Slurm, Open MPI, Kubernetes) says. Without
      a cluster this stays the only process.
    processes, index: their number and this one's; read with a coordinator only.

  Raises:
    EagrlError: no address, or the others cannot be reached.
  """
  if jax.distributed.is_initialized():
    return
  host, _, port = coordinator.rpartition(':')
  if coordinator and not (host and port.isdecimal() and 0 < int(port) < 2**16):
    raise EagrlError(f'--coordinator={coordinator} is no host:port of process 0, such as 10.0.0.1:1234')
  given: dict[str, Any] = {'coordinator_address': coordinator, 'num_processes': processes, 'process_id': index,
                           'cluster_detection_method': 'deactivate'} if coordinator else {}
  jax.config.update('jax_enable_preemption_service', False)  # it would swallow the TERM that ends a run
  try:
    jax.distributed.initialize(**given, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=60)
  except ValueError as error:
    if coordinator or 'coordinator_address' not in str(error):
      raise EagrlError(f'--distributed: {error}') from error
    logging.warning('--distributed: the environment describes no cluster; this is the only process')
  except RuntimeError as error:
    raise EagrlError(f'--distributed: {str(error).splitlines()[0]}') from error


def count() -> int:
  """Processes that take part in what is going on: 1 inside `first`."""
  return 1 if _alone else jax.process_count()


def is_main() -> bool:
  return jax.process_index() == 0


def working_alone() -> bool:
  """Whether this is process 0 inside `first`, with other processes waiting for it."""
  return _alone


def first(work: Callable[[], T]) -> T:
  """Process 0 does `work` on its own devices while the others wait; its result (JSON) or failure is everybody's.

  Raises:
    Elsewhere: in the other processes, when `work` fails.
  """
  global _alone
  if count() == 1:
    return work()
  answer: dict[str, Any] = {}
  failure = None
  if is_main():
    _alone = True
    try:
      with jax.set_mesh(mesh_lib.local_mesh()):
        answer['value'] = work()
    except Exception as error:  # told to the others, then raised
      failure = error
    finally:
      _alone = False
  # Not a collective of the devices: those give up after seconds or minutes, and an expert may train for hours.
  ocp.multihost.get_barrier_sync_fn()(key=f'eagrl_{next(_number)}', timeout_ms=LONGEST_MS)
  answer = json.loads(_tell(json.dumps(answer).encode()))
  if failure is not None:
    raise failure
  if 'value' not in answer:
    raise Elsewhere('process 0 failed')
  return answer['value']


def agree(value: str, complaint: str) -> None:
  """Raises `complaint` in every process unless all of them hold the same value."""
  if count() == 1:
    return
  seen = multihost_utils.process_allgather(np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8))
  if (seen != seen[0]).any():
    raise (EagrlError if is_main() else Elsewhere)(complaint)


def local(tree: Any) -> Any:
  """The tree with every array readable here: those spread over processes become numpy, the others stay as they are."""
  def read(x):
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
      return x
    return np.asarray(x) if x.is_fully_replicated else multihost_utils.process_allgather(x, tiled=True)

  return jax.tree.map(read, tree)


def _tell(message: bytes) -> bytes:
  """Process 0's message, in every process."""
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
  room = np.zeros(-(-size // BLOCK) * BLOCK, np.uint8)
  if is_main():
    room[:size] = np.frombuffer(message, np.uint8)
  return np.asarray(multihost_utils.broadcast_one_to_all(room))[:size].tobytes()
