"""One of two processes is told to end, or is killed: both leave, and the same command goes on, bit for bit.

This file is also what the processes run in place of main, and its config.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shutil
import signal
import sys

import jax
import numpy as np
import pytest

from eagrl_jax.mesh import make_mesh
from eagrl_jax.stages import policy
from eagrl_jax.train import preemption
from eagrl_jax.train.metrics import MetricWriter

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = (f'--config={__file__}', '--config.mesh.fsdp=2')


def get_config():
  spec = importlib.util.spec_from_file_location('small', pathlib.Path(__file__).with_name('small.py'))
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  config.target = 'search'
  config.base.update(steps=6, checkpoint_every=2)
  return config


@pytest.fixture
def stand_in(tmp_path):
  """`(signal, number)`: a python whose process 1 gets a signal as it reports a step for the so manieth time."""
  def make(name: str, number: int) -> str:
    path = tmp_path / f'python-{name}'
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} {number} "$@"\n')
    path.chmod(0o755)
    return str(path)

  return make


def newest(workdir):
  return max(int(p.name) for p in (workdir / 'base' / 'checkpoints').iterdir() if p.name.isdigit())


def test_both_stop_at_one_step_and_a_killed_one_takes_the_other_along(start_main, stand_in, tmp_path, monkeypatch):
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  status, _, err = start_main(2, *FLAGS, f'--workdir={whole}').finish()
  assert status == 0, err[-3000:]
  for stage in ('prepare', 'expert'):
    shutil.copytree(whole / stage, cut / stage)
  flags = [*FLAGS, f'--workdir={cut}']

  # Process 1 alone gets the signal; step 3 is no multiple of checkpoint_every.
  status, _, err = start_main(2, *flags, python=stand_in('SIGTERM', 2)).finish()
  assert status == 0 and err.count(preemption.LINE) == 1 and 'Traceback' not in err, err[-3000:]
  assert newest(cut) == 3 and not (cut / 'base' / 'done.json').exists()

  # `finish` returns when both have closed their output: the one that was left over has ended too.
  status, _, err = start_main(2, *flags, python=stand_in('SIGKILL', 2)).finish()
  assert status == 128 + signal.SIGKILL, err[-3000:]
  assert newest(cut) == 4 and not (cut / 'base' / 'done.json').exists()

  # Two steps of base, then the first batch of the search, whose part process 0 writes.
  status, _, err = start_main(2, *flags, python=stand_in('SIGTERM', 3)).finish()
  assert status == 0 and 'base: resuming at step 4' in err and err.count(preemption.LINE) == 1, err[-3000:]
  assert [p.name for p in (cut / 'search' / 'parts').iterdir()] == ['0.json']

  status, _, err = start_main(2, *flags).finish()
  assert status == 0 and 'search: resuming at batch 1' in err, err[-3000:]
  one, two = (jax.tree.leaves(policy.load(w / 'base', make_mesh()).params) for w in (whole, cut))
  assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
  rows = [(w / 'base' / 'metrics.jsonl').read_text() for w in (whole, cut)]
  assert rows[0] == rows[1] and len(rows[0].splitlines()) == 6
  monkeypatch.syspath_prepend(str(ROOT))
  from benchmarks.kills import differences
  assert differences(whole, cut, ('search',)) == []


def main() -> None:
  number, left = getattr(signal, sys.argv[1]), int(sys.argv[2])
  del sys.argv[1:5]  # the two words, and `-m eagrl_jax.main`
  real = MetricWriter.write

  def write(*args):
    nonlocal left
    left -= 1
    if not left and jax.process_index() == 1:
      os.kill(os.getpid(), number)
    real(*args)

  MetricWriter.write = write
  from eagrl_jax import main as program
  program.run()


if __name__ == '__main__':
  main()
