"""A search cut off between two batches goes on with the next one; a node's value is the one that UCT went by."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import types

import jax
import numpy as np
import pytest

from eagrl_jax.search import tree as tree_lib
from eagrl_jax.search.steps import SearchResult
from eagrl_jax.search.trajectories import Trajectory
from eagrl_jax.stages import graph, parts, pipeline, search, trees
from eagrl_jax.train.progress import Progress

ROOT = pathlib.Path(__file__).parents[2]


class Killed(Exception):
  pass


@pytest.fixture
def run(finished, micro_config, tmp_path, monkeypatch):
  """`(owner, name, number) -> (batches searched, patients done before)`, the stage cut off after a call of a function.

  Without a function it ends, and must leave what an undisturbed one does.
  """
  monkeypatch.syspath_prepend(str(ROOT))
  from benchmarks.kills import differences
  for done in graph.NAMES[:graph.NAMES.index('search')]:
    shutil.copytree(finished / done, tmp_path / done)

  def start(owner=None, name='', number=1):
    searched, before, calls = [], [], []
    with monkeypatch.context() as m:
      watch(m, trees, 'grow', lambda *_: searched.append(1))
      watch(m, Progress, '__init__', lambda *args: before.append(args[3]))
      if owner is None:
        pipeline.run(micro_config(target='search'), tmp_path)
        assert differences(finished, tmp_path, ('search',)) == [] and not (tmp_path / 'search' / 'parts').exists()
      else:
        def die(*_):
          calls.append(1)
          if len(calls) == number:
            raise Killed

        watch(m, owner, name, die)
        with pytest.raises(Killed):
          pipeline.run(micro_config(target='search'), tmp_path)
    return len(searched), *before

  return start


def watch(patch, owner, name, after):
  """Has a function followed by `after` of the same arguments."""
  real = getattr(owner, name)

  def call(*args, **kwargs):
    out = real(*args, **kwargs)
    after(*args)
    return out

  patch.setattr(owner, name, call)


def test_a_search_cut_off_between_batches_goes_on_with_the_next(run):
  assert run(parts, 'write') == (1, 0)
  assert run(search, 'write_json', 2) == (1, 4)  # among the results, of which each is written anew
  assert run() == (0, 8)


def test_a_batch_whose_file_is_broken_is_searched_again(run, tmp_path):
  run(parts, 'write', number=2)
  path = tmp_path / 'search' / 'parts' / '1.json'
  path.write_bytes(path.read_bytes()[:-20])
  assert run() == (1, 4)


def test_a_trajectory_is_read_as_it_was_written(tmp_path):
  one = Trajectory(row=3, label=1, node=2, steps=2, text='≥ 0.1\n', tokens=(5, 0), reward=np.nextafter(.1, 1),
                   value=-1 / 3, visits=0, prob=.25, features=(), jaccard=0.0)
  found = [one, dataclasses.replace(one, features=(4, 1), reward=-np.inf)]
  parts.write(tmp_path / 'parts', 0, [vars(t) for t in found])
  read = lambda i: [Trajectory.from_json(row) for row in parts.read(tmp_path / 'parts', i)]
  assert read(0) == found
  for other in ('null', '[1]', '[{"row": 3}]', '{'):
    (tmp_path / 'parts' / '1.json').write_text(other)
    assert parts.finished(tmp_path / 'parts', read) == 1


@pytest.mark.parametrize(('backup', 'values'), [('max', [.55, .55, None, .9, -.5]), ('mean', [.2, .2, None, .9, -.5])])
def test_a_nodes_value_is_the_one_that_the_search_went_by(backup, values):
  """root -> 1, 2; 1 -> 3, 4, both final and each visited once; rewards .2, .6, .9, -.5."""
  tree, yes = tree_lib.empty(5, 2), np.array([True, True])
  tree, _ = tree_lib.add_children(tree, 0, np.array([.2, .6]), ~yes, yes)
  tree, _ = tree_lib.add_children(tree, 1, np.array([.9, -.5]), yes, yes)
  for leaf in (3, 4):
    tree = tree_lib.backup(tree, np.int32(leaf), 3)
  none = np.zeros((1, 5))
  result = SearchResult(tree=jax.tree.map(lambda x: np.asarray(x)[None], tree), tokens=np.zeros((1, 5, 1), int),
                        length=none.astype(int), mentioned=none, named=none, prob=none, useful=none, confidence=none)
  nodes = search.explain(result, types.SimpleNamespace(decode=lambda ids: '', eos_id=0), backup)['nodes']
  assert [n['value'] for n in nodes] == [v if v is None else pytest.approx(v, abs=1e-6) for v in values]
