"""Supervised loss against a numpy loop; micro-batches; learning by heart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eagrl_jax import mesh as mesh_lib
from eagrl_jax.lm import model
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.forward import forward_shared
from eagrl_jax.lm.logprobs import logits
from eagrl_jax.train import state as state_lib
from eagrl_jax.train.supervised import SupervisedBatch, SupervisedConfig, make_sft_step, supervised_loss, weigh
from eagrl_jax.types import EagrlError, PromptBatch

LM = LMConfig(vocab_size=19, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=24)
B, S, T = 4, 7, 5


def make_batch() -> SupervisedBatch:
  rng = np.random.default_rng(0)
  valid = np.arange(S)[None, :] >= S - rng.integers(2, S + 1, B)[:, None]
  answer_valid = np.arange(T)[None, None, :] < rng.integers(2, T + 1, (B, 1))[..., None]
  prompt = PromptBatch(
      tokens=rng.integers(0, 19, (B, S)), valid=valid, feature=np.full((B, S), -1), example=np.arange(B))
  return jax.tree.map(jnp.asarray, SupervisedBatch(
      prompt=prompt, tokens=rng.integers(0, 19, (B, 1, T)), valid=answer_valid,
      loss_mask=rng.choice([0.0, 0.5, 1.0], (B, 1, T)).astype(np.float32)))


@jax.jit
def forward(params, batch):
  out = forward_shared(params, LM, batch.prompt.tokens, batch.prompt.valid, batch.tokens, batch.valid)
  return tuple(jax.nn.log_softmax(logits(params, LM, h)) for h in (out.hidden, out.prompt_hidden))


def compiled(optimizer, cfg):
  shardings = state_lib.state_shardings(LM, optimizer, mesh_lib.make_mesh())
  return make_sft_step(LM, optimizer, cfg, shardings)


@pytest.fixture(scope='module')
def params():
  return jax.tree.map(lambda x: 3 * x if x.ndim > 2 else x, model.init(LM, jax.random.key(0)))


@pytest.mark.parametrize('prompt_loss', [0.0, 0.3])
def test_loss_against_a_numpy_loop(params, prompt_loss):
  batch = make_batch()
  answer, prompt = (np.asarray(x, np.float64) for x in forward(params, batch))
  nll, weight, prompt_nll = 0.0, 0.0, []
  for b in range(B):
    for t in np.flatnonzero(batch.valid[b, 0]):
      w = float(batch.loss_mask[b, 0, t])
      nll, weight = nll - w * answer[b, 0, t, batch.tokens[b, 0, t]], weight + w
    for s in np.flatnonzero(batch.prompt.valid[b])[:-1]:
      prompt_nll.append(-prompt[b, s, batch.prompt.tokens[b, s + 1]])
  loss, stats = jax.jit(supervised_loss, static_argnums=(2, 3))(
      params, weigh(batch), LM, SupervisedConfig(B, prompt_loss))
  np.testing.assert_allclose(stats.sums['nll'], nll / weight, rtol=1e-5)
  np.testing.assert_allclose(loss, nll / weight + prompt_loss * np.mean(prompt_nll), rtol=1e-5)
  assert ('prompt_nll' in stats.sums) == bool(prompt_loss)


def test_micro_batches_equal_the_full_batch(params):
  optimizer = optax.sgd(0.5)
  runs = []
  for micro in (B, 2):
    state = state_lib.from_params(params, LM, optimizer, mesh_lib.make_mesh())
    runs.append(compiled(optimizer, SupervisedConfig(micro, 0.2))(state, make_batch()))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *runs)


def test_answers_are_learnt_by_heart(params):
  optimizer = optax.adam(3e-2)
  state = state_lib.from_params(params, LM, optimizer, mesh_lib.make_mesh())
  step = compiled(optimizer, SupervisedConfig(B))
  for _ in range(40):
    state, metrics = step(state, make_batch())
  assert metrics['nll'] < 0.05 and metrics['finite'] == 1 and state.step == 40
  assert step._cache_size() == 1


def test_bad_config():
  with pytest.raises(EagrlError, match='micro_batch'):
    SupervisedConfig(0)
  with pytest.raises(EagrlError, match='prompt_loss'):
    SupervisedConfig(1, -1.0)
