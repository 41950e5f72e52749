"""A run by 2 processes is the run by 1, up to the order in which floats are added; one of them speaks."""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from eagrl_jax.mesh import make_mesh
from eagrl_jax.stages import pipeline, policy

CONFIG = f'--config={pathlib.Path(__file__).parent / "small.py"}'
STAGES = pipeline.NAMES[:pipeline.NAMES.index('evaluate') + 1]


@pytest.fixture(scope='module')
def runs(start_main, tmp_path_factory):
  """Folder and stderr of the whole run by 1 process on 4 devices, and by 2 on 2 each."""
  folder = tmp_path_factory.mktemp('runs')
  started = {n: start_main(n, CONFIG, f'--workdir={folder / str(n)}') for n in (1, 2)}
  ended = {n: s.finish() for n, s in started.items()}
  for status, _, err in ended.values():
    assert status == 0, err[-3000:]
  return {n: (folder / str(n), ended[n][1], ended[n][2]) for n in ended}


def near(one, two):
  """Equal structure; numbers to 1e-5, which is the tests' tolerance between one device and many."""
  if isinstance(one, dict):
    assert list(one) == list(two)
    for name in one:
      if name != 'seconds':  # measured
        near(one[name], two[name])
  elif isinstance(one, list):
    assert len(one) == len(two)
    for a, b in zip(one, two):
      near(a, b)
  elif isinstance(one, float):
    np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-5)
  else:
    assert one == two


def test_the_weights_are_the_same(runs):
  for stage in policy.POLICIES:
    one, two = (jax.tree.leaves(policy.load(w / stage, make_mesh()).params) for w, _, _ in runs.values())
    for a, b in zip(one, two, strict=True):
      np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


def test_the_results_are_the_same(runs):
  read = lambda name: [json.loads((w / name).read_text()) for w, _, _ in runs.values()]
  near(*read('evaluate/metrics.json'))
  near(*read('search/summary.json'))
  near(*[pq.read_table(w / 'evaluate/predictions.parquet').to_pydict() for w, _, _ in runs.values()])
  for stage in ('expert', 'base', 'search', 'sft', 'rl'):
    near(*[[json.loads(line) for line in (w / stage / 'metrics.jsonl').read_text().splitlines()]
           for w, _, _ in runs.values()])


def test_one_process_speaks_and_writes(runs):
  folder, out, err = runs[2]
  assert json.loads((folder / 'environment.json').read_text())['processes'] == 2
  for i, stage in enumerate(STAGES, 1):
    assert err.count(f'[{i}/{len(STAGES)}] {stage} finished') == 1
    assert len(list((folder / stage).glob('events.*'))) == len(list((runs[1][0] / stage).glob('events.*')))
  assert out.count('AUROC') == 1 and not (folder / 'superseded').exists()


def test_a_mistake_is_said_once_and_ends_all(start_main, tmp_path):
  """By two processes, and by one that finds no cluster around it."""
  flags = [CONFIG, f'--workdir={tmp_path / "w"}', '--config.rl.group=1']
  for started in (start_main(2, *flags), start_main(1, '--distributed', *flags)):
    status, _, err = started.finish()
    said = [line for line in err.splitlines() if line.startswith('eagrl_jax:')]
    assert status == 1 and len(said) == 1 and 'rl.group=1' in said[0], err
    assert 'Traceback' not in err and not (tmp_path / 'w').exists()
  assert 'no cluster' in err
