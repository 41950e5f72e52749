"""Checkpoints: an interrupted run continues bitwise, and nothing is lost, mixed up or written over in silence."""

from __future__ import annotations

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagrl_jax import mesh as mesh_lib
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.train import checkpoint
from eagrl_jax.train import state as state_lib
from eagrl_jax.train.checkpoint import Checkpoints
from eagrl_jax.train.optimizer import OptimizerConfig, make_optimizer
from eagrl_jax.train.supervised import SupervisedBatch, SupervisedConfig, make_sft_step
from eagrl_jax.types import EagrlError, PromptBatch

LM = LMConfig(vocab_size=19, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=24)
OPTIMIZER = make_optimizer(OptimizerConfig(1e-2, total_steps=4, warmup_steps=1, schedule='cosine', weight_decay=0.1))
SHARDINGS = state_lib.state_shardings(LM, OPTIMIZER, mesh_lib.make_mesh())
STEP = make_sft_step(LM, OPTIMIZER, SupervisedConfig(2), SHARDINGS)


def batch_of(step: int) -> SupervisedBatch:
  """Data are a function of the step."""
  rng = np.random.default_rng(step)
  prompt = PromptBatch(
      tokens=rng.integers(0, 19, (4, 6)), valid=np.ones((4, 6), bool), feature=np.full((4, 6), -1),
      example=np.arange(4))
  ones = np.ones((4, 1, 5))
  return SupervisedBatch(prompt=prompt, tokens=rng.integers(0, 19, (4, 1, 5)), valid=ones > 0, loss_mask=ones)


@functools.cache
def kept_state(seed: int = 0):
  """One initialisation for all tests that do not donate it."""
  return new_state(seed)


def new_state(seed: int = 0):
  return state_lib.create(LM, OPTIMIZER, jax.random.key(seed), mesh_lib.make_mesh())


def like():
  return state_lib.abstract(LM, OPTIMIZER, mesh_lib.make_mesh())


def run(state, start, stop):
  for step in range(start, stop):
    state, _ = STEP(state, batch_of(step))
  return state


def equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_four_steps_equal_two_and_two_more_after_a_restart(tmp_path):
  want = run(new_state(), 0, 4)
  with Checkpoints(tmp_path / 'c') as writer:
    writer.save(2, run(new_state(), 0, 2), {'epoch': 1, 'seen': [3, 4]})
  with Checkpoints(tmp_path / 'c') as reader:
    state, position, step = reader.restore(like())
  assert (position, step, int(state.step)) == ({'epoch': 1, 'seen': [3, 4]}, 2, 2)
  compiled = STEP._cache_size()
  equal(run(state, step, 4), want)
  assert STEP._cache_size() == compiled


def test_keeps_the_newest(tmp_path):
  state = kept_state()
  with Checkpoints(tmp_path / 'c', keep=2) as writer:
    assert writer.restore(like()) is None
    for step in (1, 2, 5):
      writer.save(step, state, {})
    assert writer.latest_step() == 5
    assert sorted(p.name for p in (tmp_path / 'c').iterdir() if p.name.isdigit()) == ['2', '5']
    for step in (5, 3):
      with pytest.raises(EagrlError, match='already holds step 5'):
        writer.save(step, state, {})


def spoil(folder, what):
  files = sorted(p for p in folder.rglob('*') if p.is_file())
  for path in files:
    if what == 'empty':
      path.write_bytes(b'')
    elif what == 'junk' and 'd' in path.parent.name:
      path.write_bytes(b'junk')
  if what == 'missing':
    shutil.rmtree(folder / 'state')
  elif what == 'position':
    shutil.rmtree(folder / 'position')
  elif what in ('bit', 'short'):
    path = max(files, key=lambda p: p.stat().st_size)  # the weights
    data = bytearray(path.read_bytes())
    if what == 'bit':
      data[len(data) // 2] ^= 1
    path.write_bytes(data if what == 'bit' else data[:-1])


@pytest.mark.parametrize('what', ['empty', 'junk', 'missing', 'position', 'bit', 'short'])
def test_a_corrupt_checkpoint_is_named_and_the_one_before_is_used(tmp_path, caplog, what):
  with Checkpoints(tmp_path / 'c') as writer:
    writer.save(1, kept_state(0), {})
    writer.save(2, kept_state(1), {})
  spoil(tmp_path / 'c' / '2', what)
  with Checkpoints(tmp_path / 'c') as reader:
    state, _, step = reader.restore(like())
    assert step == 1
    equal(state.params, kept_state(0).params)
    assert [r.message for r in caplog.records if '/2 is corrupt' in r.message and 'moved to' in r.message]
    assert (tmp_path / 'c_corrupt' / '2').is_dir() and not (tmp_path / 'c' / '2').exists()
    reader.save(2, kept_state(1), {})  # its place is free again
    assert reader.restore(like())[2] == 2


def test_a_stray_file_spoils_nothing(tmp_path):
  with Checkpoints(tmp_path / 'c') as writer:
    writer.save(1, kept_state(0), {})
    (tmp_path / 'c' / '1' / 'notes.txt').write_text('mine')
    assert writer.restore(like())[2] == 1


def test_no_sound_checkpoint_is_an_error_and_not_a_fresh_start(tmp_path):
  with Checkpoints(tmp_path / 'c') as writer:
    writer.save(1, kept_state(0), {})
  spoil(tmp_path / 'c' / '1', 'bit')
  with Checkpoints(tmp_path / 'c') as reader:
    with pytest.raises(EagrlError, match='no sound checkpoint is left'):
      reader.restore(like())
    assert reader.restore(like()) is None  # said once; the next run begins anew


@pytest.mark.parametrize('change', [{'d_model': 24}, {'n_layers': 3}, {'qkv_bias': True}, {'tie_embeddings': False}])
def test_another_model_is_refused(tmp_path, change):
  with Checkpoints(tmp_path / 'c') as writer:
    writer.save(1, kept_state(), {})
    other = state_lib.abstract(dataclasses.replace(LM, **change), OPTIMIZER, mesh_lib.make_mesh())
    with pytest.raises(EagrlError, match='another model'):
      writer.restore(other)


def test_weights_alone(tmp_path):
  params = kept_state(1).params
  checkpoint.save_params(tmp_path / 'p', params)
  equal(checkpoint.load_params(tmp_path / 'p', like().params, 'sft'), params)
  with pytest.raises(EagrlError, match='not written over'):
    checkpoint.save_params(tmp_path / 'p', params)
  with pytest.raises(EagrlError, match=r'does not exist; delete sft/done\.json and run'):
    checkpoint.load_params(tmp_path / 'q', params, 'sft')
  for what in ('bit', 'empty'):
    spoil(tmp_path / 'p', what)
    with pytest.raises(EagrlError, match=r'is corrupt .*; delete sft/done\.json and run the command that made it'):
      checkpoint.load_params(tmp_path / 'p', params, 'sft')


def test_loaded_weights_survive_a_donating_step():
  params = kept_state().params
  before = jax.tree.map(np.array, params)
  run(state_lib.from_params(params, LM, OPTIMIZER, mesh_lib.make_mesh()), 0, 1)
  equal(params, before)
  assert jnp.isfinite(params['embed']).all()
