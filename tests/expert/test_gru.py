"""The GRU's own backward pass against the differentiated scan; prefixes against shorter stays."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagrl_jax.expert import ensemble, gru
from eagrl_jax.expert import train as expert_train
from eagrl_jax.expert.concare import ConCare, ConCareConfig, decov, init
from eagrl_jax.types import ExpertBatch


def plain(w: gru.Weights, x, valid):
  """`gru.run` as one scan, to be differentiated by JAX."""

  def step(h, now):
    x, valid = now
    gate = lambda i: x.T @ w.inputs[i] + w.bias[i][None]
    recur = lambda i: h @ w.recurrent[i]
    reset, update = jax.nn.sigmoid(gate(0) + recur(0)), jax.nn.sigmoid(gate(1) + recur(1))
    candidate = jnp.tanh(gate(2) + reset * (recur(2) + w.recurrent_bias[None]))
    h = jnp.where(valid[:, None], (1 - update) * candidate + update * h, h)
    return h, h

  return jax.lax.scan(step, jnp.zeros((x.shape[2], w.bias.shape[1])), (x, valid))[1].swapaxes(0, 1)


@pytest.mark.parametrize(('visits', 'inputs'), [(1, 1), (5, 2)])
def test_backward_pass_is_the_derivative(visits, inputs):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  b, h = 4, 3
  w = gru.Weights(draw(3, inputs, h), draw(3, h), tuple(draw(h, h) for _ in range(3)), draw(h))
  x, valid = draw(visits, inputs, b), jnp.arange(visits)[:, None] < jnp.array([visits, 1, 0, max(visits - 2, 0)])[None]
  seed = draw(b, visits, h)
  np.testing.assert_allclose(gru.run(w, x, valid), plain(w, x, valid), atol=1e-6)
  got, want = (jax.grad(lambda w, x, f=f: jnp.sum(f(w, x, valid) * seed), (0, 1))(w, x) for f in (gru.run, plain))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


def batch_of(lengths, t=4, f=3) -> ExpertBatch:
  rng = np.random.default_rng(1)
  n = len(lengths)
  valid = np.arange(t) < np.array(lengths)[:, None]
  return ExpertBatch(
      values=rng.normal(size=(n, t, f)).astype(np.float32), observed=np.ones((n, t, f), np.float32), valid=valid,
      hours=np.cumsum(rng.uniform(1, 40, (n, t)), 1).astype(np.float32),
      static=rng.normal(size=(n, 2)).astype(np.float32), label=np.arange(n, dtype=np.float32) % 2)


@pytest.mark.parametrize('unit', ['visit', 'day'])
def test_a_prefix_is_a_shorter_stay(unit):
  cfg = ConCareConfig(hidden=8, heads=2, ffn=6, time_unit=unit)
  batch = batch_of([4, 2, 3])
  model, params = ConCare(cfg, 3, 2), init(jax.random.key(0), cfg, 3, 2)
  prefixes = ensemble.apply(model, params, batch, method=ConCare.encode_prefixes)
  for t in range(4):
    short = batch.replace(valid=batch.valid & (np.arange(4) <= t)[None])
    want = ensemble.apply(model, params, short, method=ConCare.encode)
    real = batch.valid[:, t]
    np.testing.assert_allclose(prefixes[t][real], want[real], atol=1e-6)


def test_decov_of_some_rows_is_decov_of_those():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 2, 3)), jnp.float32)
  rows = np.array([1, 0, 1, 1, 0, 1, 0], bool)
  np.testing.assert_allclose(decov(x, rows), decov(x[rows]), rtol=1e-5)


def test_prefix_loss_is_the_mean_over_visits():
  cfg = expert_train.ExpertTrainConfig(ConCareConfig(hidden=8, heads=2, ffn=6, dropout=0, decov=0))
  batch = batch_of([4, 2, 3])
  model, params = ConCare(cfg.model, 3, 2), init(jax.random.key(0), cfg.model, 3, 2)
  losses = []
  for t in range(4):
    logit = ensemble.apply(model, params, batch.replace(valid=batch.valid & (np.arange(4) <= t)[None]))[0]
    y = jax.nn.sigmoid(logit)
    losses += list(-np.log(np.where(batch.label > 0, y, 1 - y))[batch.valid[:, t]])
  got = expert_train._prefix_loss(params, model, jax.tree.map(jnp.asarray, batch), jax.random.key(0))
  np.testing.assert_allclose(got, np.mean(losses), rtol=1e-5)


def test_training_on_prefixes_learns_and_ignores_padding():
  cfg = expert_train.ExpertTrainConfig(ConCareConfig(hidden=8, heads=2, ffn=6, dropout=0), members=1, epochs=2,
                                       prefixes=True)
  batch = batch_of([4, 2, 3, 1, 4, 2])
  longer = jax.tree.map(lambda x: np.pad(x, [(0, 0), (0, 2), (0, 0)][:x.ndim]) if x.ndim > 1 and x.shape[1] == 4 else x,
                        batch)
  run = lambda b, c: expert_train.train_ensemble(jax.random.key(0), c, b, b)[1]['loss']
  loss = run(batch, cfg)
  np.testing.assert_allclose(run(longer, cfg), loss, rtol=1e-5)
  assert not np.allclose(run(batch, dataclasses.replace(cfg, prefixes=False)), loss, rtol=1e-3)
