"""What 2 processes saved, 1 and 4 restore; they take one decision. This file is also the program that they run."""

from __future__ import annotations

import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest

from eagrl_jax import mesh as mesh_lib
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.train import processes
from eagrl_jax.train import state as state_lib
from eagrl_jax.train.checkpoint import Checkpoints
from eagrl_jax.train.optimizer import OptimizerConfig, make_optimizer
from eagrl_jax.types import EagrlError

CONFIG = LMConfig(vocab_size=32, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=32)
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=1e-2, total_steps=10, weight_decay=0.1))


def state(step: int, mesh):
  """A state whose numbers are whole: the same in every compilation."""
  def fill(x):
    whole = (np.arange(np.prod(x.shape, dtype=int)).reshape(x.shape) % 97 + step).astype(x.dtype)
    return jax.make_array_from_callback(x.shape, x.sharding, lambda index: whole[index])

  return jax.tree.map(fill, state_lib.abstract(CONFIG, OPTIMIZER, mesh))


def restored(folder: pathlib.Path, mesh) -> tuple[bool, int, dict]:
  """Whether the newest checkpoint holds what was saved, its step and its position."""
  with Checkpoints(folder) as files:
    found, position, step = files.restore(state_lib.abstract(CONFIG, OPTIMIZER, mesh))
  pairs = zip(jax.tree.leaves(processes.local(found)), jax.tree.leaves(processes.local(state(step, mesh))), strict=True)
  return all(np.array_equal(a, b) for a, b in pairs), step, position


def test_two_save_one_and_four_restore(run_script, tmp_path):
  folder = tmp_path / 'c'
  run_script(__file__, 2, 'save', str(folder))
  assert restored(folder, mesh_lib.make_mesh()) == (True, 2, {'step': 2})
  assert run_script(__file__, 4, 'restore', str(folder)) == ['True 2 4', '', '', '']

  # A file of the newest is broken: all four take the one before, and one of them moves it aside.
  shards = [p for p in (folder / '2' / 'state').rglob('*') if p.is_file() and 'ocdbt.process' in str(p)]
  assert {p.relative_to(folder / '2' / 'state').parts[0] for p in shards} == {'ocdbt.process_0', 'ocdbt.process_1'}
  largest = max(shards, key=lambda p: p.stat().st_size)
  largest.write_bytes(largest.read_bytes()[:-1] + b'?')
  shutil.copytree(folder, tmp_path / 'd')
  assert run_script(__file__, 4, 'restore', str(tmp_path / 'd')) == ['True 1 4', '', '', '']
  assert [p.name for p in (tmp_path / 'd_corrupt').iterdir()] == ['2']


def main(port: str, count: str, index: str, what: str, folder: str) -> None:
  processes.start(f'127.0.0.1:{port}', int(count), int(index))
  assert jax.process_count() == int(count) and jax.device_count() == 4
  mesh = mesh_lib.make_mesh(fsdp=4)
  if what == 'save':
    decide(int(index))
    with Checkpoints(folder) as files:
      for step in (1, 2):
        files.save(step, state(step, mesh), {'step': step})
    return
  same, step, _ = restored(pathlib.Path(folder), mesh)
  if processes.is_main():
    print(same, step, jax.process_count())


def decide(index: int) -> None:
  """Process 0's answer and failure are everybody's, and work of its own does not wait for the others."""
  alone = lambda: [index, processes.count(), processes.first(lambda: 'inner'), len(jax.local_devices())]
  assert processes.first(alone) == [0, 1, 'inner', 2] and processes.count() == 2
  with pytest.raises(ZeroDivisionError if index == 0 else processes.Elsewhere):
    processes.first(lambda: 1 // 0)
  processes.agree('same', 'never raised')
  with pytest.raises(EagrlError, match='they differ'):
    processes.agree(str(index), 'they differ')


if __name__ == '__main__':
  main(*sys.argv[1:])
