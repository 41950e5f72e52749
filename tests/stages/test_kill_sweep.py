"""A few kills of `benchmarks/kills.py`, and that it sees a difference where there is one."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = pathlib.Path(__file__).with_name('conftest.py')


@pytest.fixture
def kills(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT))
  from benchmarks import kills
  return kills


def start(workdir):
  """As the reference was computed: same flags, same compiled programs."""
  env = os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT),
                      'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir or ''}
  return subprocess.Popen([sys.executable, '-m', 'eagrl_jax.main', f'--config={CONFIG}', f'--workdir={workdir}'],
                          cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def test_three_kills_leave_no_trace(kills, finished, tmp_path):
  kills.share_salt(finished, tmp_path / 'w')
  run = kills.one_run(start, tmp_path / 'w', 3, np.random.default_rng(0), 12.0)
  assert not run.failed and run.kills == len(run.stages) >= 1
  assert kills.differences(finished, tmp_path / 'w') == []


def test_a_process_that_fails_is_no_kill(kills, tmp_path):
  def fail(workdir):
    words = [sys.executable, '-c', 'import sys; sys.exit("no luck")']
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True)

  assert kills.one_run(fail, tmp_path, 3, np.random.default_rng(0), 60.0) == kills.Run(0, (), 'no luck\n')


def test_every_difference_is_named(kills, finished, tmp_path):
  workdir = tmp_path / 'w'
  shutil.copytree(finished, workdir)
  (workdir / 'search' / 'summary.json').unlink()
  rows = workdir / 'base' / 'metrics.jsonl'
  rows.write_text(rows.read_text().replace('"step": 1', '"step": 2'))
  shutil.rmtree(workdir / 'rl' / 'policy' / 'params')
  shutil.copytree(finished / 'base' / 'policy' / 'params', workdir / 'rl' / 'policy' / 'params')
  done = workdir / 'expert' / 'done.json'
  done.write_text(json.dumps(json.loads(done.read_text()) | {'seconds': -1}))  # a clock is no result
  assert kills.differences(finished, workdir) == ['base/metrics.jsonl', 'rl/policy/params', 'search/summary.json']
  assert kills.differences(finished, workdir, ('prepare', 'expert', 'sft')) == []
