"""SIGTERM in every stage: status 0, one line, and the same command ends with what an undisturbed run leaves.

This file is also the program that gets the signal, and its config.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from eagrl_jax.mesh import make_mesh
from eagrl_jax.stages import graph, pipeline, policy
from eagrl_jax.train import preemption
from eagrl_jax.train.metrics import MetricWriter
from eagrl_jax.train.progress import Progress

ROOT = pathlib.Path(__file__).parents[2]
CALLS = {'write': (MetricWriter, 'write'), 'update': (Progress, 'update')}


def get_config():
  """The smallest run, with an rl that moves the weights although all answers earn the same."""
  sys.path.insert(0, str(ROOT))
  try:
    from tests.stages.conftest import micro
  finally:
    sys.path.remove(str(ROOT))
  config = micro()
  config.rl.update(align_rows='all', dynamic_sampling=False, warmup=0, validate_every=1)
  return config


@pytest.fixture(scope='module')
def undisturbed(finished, tmp_path_factory):
  """A finished run of `get_config`."""
  workdir = tmp_path_factory.mktemp('undisturbed')
  for done in graph.NAMES[:graph.NAMES.index('rl')]:
    shutil.copytree(finished / done, workdir / done)
  pipeline.run(get_config(), workdir)
  sft, rl = (jax.tree.leaves(policy.load(workdir / stage, make_mesh()).params) for stage in ('sft', 'rl'))
  assert not all(np.array_equal(a, b) for a, b in zip(sft, rl, strict=True))
  return workdir


# Stage; the signal comes in the so manieth call of a function; the checkpoint that it must leave, which no
# checkpoint_every asks for, or the last batch of patients; training ends with it where it is the last step.
@pytest.mark.parametrize(('stage', 'call', 'number', 'left'), [
    ('expert', 'write', 2, 2), ('search', 'write', 1, 0), ('sft', 'write', 5, 6), ('rl', 'write', 2, 2),
    ('rl', 'update', 5, 1),  # the first of the three batches that are asked after step 1
    ('evaluate', 'update', 1, 0)])
def test_a_stage_that_is_told_to_end_goes_on_as_if_it_never_had(stage, call, number, left, undisturbed,
                                                               tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT))
  from benchmarks.kills import differences, share_salt
  share_salt(undisturbed, tmp_path)
  before = graph.NAMES[:graph.NAMES.index(stage)]
  for done in before:
    shutil.copytree(undisturbed / done, tmp_path / done)
  ended = subprocess.run(
      [sys.executable, __file__, call, str(number), f'--config={__file__}', f'--workdir={tmp_path}'], cwd=ROOT,
      env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT),
                        'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir or ''},
      capture_output=True, text=True, timeout=300, check=False)
  assert ended.returncode == 0, ended.stderr
  assert [line for line in ended.stderr.splitlines() if 'eagrl_jax:' in line] == [preemption.LINE]
  assert 'Traceback' not in ended.stderr and not (tmp_path / stage / 'done.json').exists()
  steps = [int(p.stem) for kept in ('checkpoints/*', 'parts/*', 'parts/*/*') for p in (tmp_path / stage).glob(kept)
           if p.stem.isdigit()]
  assert max(steps, default=None) == left
  config = get_config()
  config.target = stage
  pipeline.run(config, tmp_path)
  assert differences(undisturbed, tmp_path, (*before, stage)) == []


def main() -> None:
  owner, name = CALLS[sys.argv.pop(1)]
  left = int(sys.argv.pop(1))
  real = getattr(owner, name)

  def called(*args, **kwargs):
    nonlocal left
    left -= 1
    if not left:
      os.kill(os.getpid(), signal.SIGTERM)
    return real(*args, **kwargs)

  setattr(owner, name, called)
  from eagrl_jax import main as program
  program.run()


if __name__ == '__main__':
  main()
