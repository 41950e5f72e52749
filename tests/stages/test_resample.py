"""`rl.resample`: further patients are asked while groups of equal rewards leave places in a step."""

import dataclasses
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagrl_jax import mesh as mesh_lib
from eagrl_jax.rl.update import RLBatch
from eagrl_jax.stages import cells, checks, graph, pipeline, rl
from eagrl_jax.types import EagrlError, PromptBatch, Rollout

TRAIN = np.arange(100, 114)


def asked(rows, weight, width):
  """A batch that says whom it asks and whose answers differ."""
  n = len(rows)
  zeros = lambda *shape: jnp.zeros((n, *shape))
  return RLBatch(PromptBatch(zeros(width), zeros(width), zeros(width), jnp.asarray(rows)),
                 Rollout(zeros(2, 3), zeros(2, 3), zeros(2, 3), zeros(2, 3)), zeros(2), zeros(2), jnp.asarray(weight),
                 zeros(5), zeros(2, 3))


def filled(counts, resample, train=TRAIN):
  """`rl.fill` of a step of 4 patients, of whom those count whose id is in `counts`; and the keys it drew with."""
  config = types.SimpleNamespace(seed=0, rl=types.SimpleNamespace(
      resample=resample, prompts=4, minibatches=2, micro_batch=2))
  context = types.SimpleNamespace(config=config, mesh=mesh_lib.make_mesh())
  keys = []

  def ask(rows, key, at):
    keys.append((tuple(jax.random.key_data(key).tolist()), at))
    weight = np.isin(rows, counts).astype(np.float32)
    figures = {'reward': float(np.mean(rows)), 'groups_used': float(weight.mean())}
    return asked(rows, weight, 4 + 2 * (len(keys) % 2)), figures

  rows, key = rl.draw(context, train, 0), jax.random.key(1)
  first = ask(rows, jax.random.fold_in(key, 0), (0,))
  return *rl.fill(context, train, ask, key, 0, *first, rows), keys


def test_further_patients_fill_the_places():
  batch, figures, rows, keys = filled(TRAIN[::2], resample=5)
  assert len(set(rows.tolist())) == len(rows) and set(rows) <= set(TRAIN)  # nobody twice in a step
  assert figures['groups_used'] == 1 and figures['rollouts'] == len(rows) / 4 == len(set(keys)) > 1
  np.testing.assert_array_equal(batch.weight, np.ones(4))
  np.testing.assert_array_equal(batch.prompt.example, [row for row in rows if row % 2 == 0][:4])
  np.testing.assert_allclose(figures['reward'], rows.mean())  # of all that were asked


@pytest.mark.parametrize(('resample', 'asked'), [(1, 2), (9, 3)])
def test_it_ends_with_its_rollouts_or_with_the_patients(resample, asked):
  batch, figures, rows, _ = filled([], resample)
  assert figures['rollouts'] == asked and figures['groups_used'] == 0 and len(rows) == 4 * asked
  np.testing.assert_array_equal(batch.prompt.example, rows[:4])


def test_a_full_batch_asks_nobody_else():
  _, figures, rows, _ = filled(TRAIN, resample=5)
  assert figures['rollouts'] == 1 and len(rows) == 4


def test_it_needs_groups_that_are_left_out(micro_config):
  config = micro_config()
  config.rl.update(dynamic_sampling=False, resample=2)
  with pytest.raises(EagrlError, match=r'rl\.resample=2 .*rl\.dynamic_sampling'):
    checks.check(config)


def test_an_arm_that_leaves_nothing_out_fills_nothing(micro_config):
  config = micro_config()
  config.rl.resample = 2
  assert [cells.own(config, 0, arm).rl.resample for arm in ('eag', 'grpo', 'dapo')] == [2, 0, 4]


def test_the_stage_trains_on_what_was_filled_in(finished, micro_config, tmp_path, monkeypatch):
  """The first rollout of every step teaches nothing: without further ones the weights would stay."""
  for done in graph.NAMES[:graph.NAMES.index('rl')]:
    shutil.copytree(finished / done, tmp_path / done)
  config, real, calls = micro_config(target='rl'), rl.score, []
  config.rl.update(resample=1, warmup=0, align_rows='all')

  def score(*args):
    batch, figures = real(*args)
    calls.append(batch.prompt.example.tolist())
    counts = float(len(calls) % 2 == 0)
    weight = jnp.full_like(batch.weight, counts)
    return dataclasses.replace(batch, weight=weight), figures | {'groups_used': counts}

  monkeypatch.setattr(rl, 'score', score)
  pipeline.run(config, tmp_path)
  assert len(calls) == 4 and not set(calls[0]) & set(calls[1])
  rows = [json.loads(line) for line in (tmp_path / 'rl' / 'metrics.jsonl').read_text().splitlines()]
  assert [(row['rollouts'], row['groups_used']) for row in rows] == [(2, 1), (2, 1)]
  assert all(row['grad_norm'] > 0 and row['entropy'] is not None for row in rows)
