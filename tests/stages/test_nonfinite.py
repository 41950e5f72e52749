"""A NaN in the middle of training: the run stops with what it had, or goes on as if the step had not been."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest

from eagrl_jax.ehr import splits, store
from eagrl_jax.lm import lora
from eagrl_jax.mesh import make_mesh
from eagrl_jax.stages import graph, lessons, pipeline, policy, rl, settings
from eagrl_jax.train import state as state_lib
from eagrl_jax.train.checkpoint import Checkpoints
from eagrl_jax.train.optimizer import make_optimizer
from eagrl_jax.types import EagrlError


def rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def begin(finished, workdir, stage):
  for done in graph.NAMES[:graph.NAMES.index(stage)]:
    shutil.copytree(finished / done, workdir / done)


def trained(workdir, stage):
  return jax.tree.leaves(policy.load(workdir / stage, make_mesh()).params)


def kept(workdir, config, stage, steps):
  """Weights of the newest checkpoint, and its step."""
  shape = policy.load(workdir / stage, make_mesh()).config
  like = state_lib.abstract(shape, make_optimizer(settings.optimizer(config, stage, steps)), make_mesh())
  with Checkpoints(workdir / stage / 'checkpoints') as files:
    state, _, step = files.restore(like)
  return jax.tree.leaves(lora.join(state.params, lora.NOTHING)), step


def equal(one, two):
  return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def spoil_lessons(monkeypatch, bad):
  """Answers of the base stage whose weight in the loss is NaN in the steps `bad`."""
  real = lessons.batches

  def batches(context, encoder, chosen, start):
    for step, batch in enumerate(real(context, encoder, chosen, start), start):
      yield dataclasses.replace(batch, loss_mask=batch.loss_mask * math.nan) if step in bad else batch

  monkeypatch.setattr(lessons, 'batches', batches)


def test_stop_keeps_the_last_checkpoint_and_skip_goes_on_from_it(finished, micro_config, tmp_path, monkeypatch):
  begin(finished, tmp_path, 'base')
  config = micro_config(target='base')
  with monkeypatch.context() as m:
    spoil_lessons(m, {2})
    with pytest.raises(EagrlError, match='base step 2: loss, grad_norm not finite'):
      pipeline.run(config, tmp_path)
  (bad,) = rows(tmp_path / 'base' / 'nonfinite.jsonl')
  cohort = store.load(tmp_path / 'prepare')
  train = splits.load(tmp_path / 'prepare' / 'splits.parquet', cohort.subject_id).train
  assert bad['step'] == 2 and len(bad['rows']) == config.base.batch and set(bad['rows']) <= set(train.tolist())
  assert [row['step'] for row in rows(tmp_path / 'base' / 'metrics.jsonl')] == [0, 1]
  config.nonfinite = 'skip'  # no part of a stage's hash: it resumes, and the cause is gone
  pipeline.run(config, tmp_path)
  assert rows(tmp_path / 'base' / 'nonfinite.jsonl') == []
  assert [row.get('skipped') for row in rows(tmp_path / 'base' / 'metrics.jsonl')] == [None, None, 0, 0]
  assert equal(trained(finished, 'base'), trained(tmp_path, 'base'))


def test_skip_leaves_weights_and_optimiser_as_they_were(finished, micro_config, tmp_path, monkeypatch):
  begin(finished, tmp_path, 'base')
  config = micro_config(target='base')
  config.nonfinite = 'skip'
  spoil_lessons(monkeypatch, {2, 3})
  pipeline.run(config, tmp_path)
  weights, step = kept(tmp_path, config, 'base', 4)
  assert step == 2 and equal(weights, trained(tmp_path, 'base'))
  assert not equal(weights, trained(finished, 'base'))
  written = rows(tmp_path / 'base' / 'metrics.jsonl')
  assert [(row['skipped'], row['loss'] is None) for row in written] == [(0, False), (0, False), (1, True), (2, True)]


@pytest.mark.parametrize(('spoilt', 'what'), [('reward', ['reward']), ('advantage', ['loss', 'grad_norm'])])
def test_rewards_and_gradients_of_rl(spoilt, what, finished, micro_config, tmp_path, monkeypatch):
  begin(finished, tmp_path, 'rl')
  config = micro_config(target='rl')
  config.rl.update(align_rows='all', dynamic_sampling=False, warmup=0)  # or nothing moves: all answers earn the same
  real, calls = rl.score, []

  def score(*args):
    batch, figures = real(*args)
    calls.append(0)
    if len(calls) != 2:
      return batch, figures
    advantage = dataclasses.replace(batch, advantage=batch.advantage * math.nan)
    return (batch, figures | {'reward': math.nan}) if spoilt == 'reward' else (advantage, figures)

  monkeypatch.setattr(rl, 'score', score)
  with pytest.raises(EagrlError, match=f'rl step 1: {", ".join(what)} not finite'):
    pipeline.run(config, tmp_path)
  config.nonfinite = 'skip'
  calls[:] = [0]  # the second call comes again
  pipeline.run(config, tmp_path)
  weights, step = kept(tmp_path, config, 'rl', config.rl.steps * config.rl.epochs * config.rl.minibatches)
  assert step == 1 and equal(weights, trained(tmp_path, 'rl')) and not equal(weights, trained(finished, 'sft'))
  (bad,) = rows(tmp_path / 'rl' / 'nonfinite.jsonl')
  assert bad['what'] == what and bad['step'] == 1 and len(bad['rows']) == config.rl.prompts
  assert rows(tmp_path / 'rl' / 'metrics.jsonl')[-1]['skipped'] == 1
