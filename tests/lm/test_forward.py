"""Shared-prefix forward against a plain decoder, one sequence at a time."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import lm_reference as ref
import numpy as np
import pytest

from eagrl_jax.lm import attention, cache, forward, logprobs


def each_sequence(batch):
  prompt, prompt_valid, answer, answer_valid = batch
  for b in range(len(prompt)):
    for g in range(answer.shape[1]):
      yield b, g, prompt[b][prompt_valid[b]], answer[b, g][answer_valid[b, g]]


def shared_loss(p, cfg, batch):
  out = forward.forward_shared(p, cfg, *batch)
  logp, entropy = logprobs.token_logprobs(p, cfg, out.hidden, batch[2])
  return jnp.where(batch[3], logp + 0.1 * entropy, 0).sum()


def unpacked_loss(p, cfg, batch):
  total = 0.0
  for _, _, prompt, answer in each_sequence(batch):
    states, _ = ref.forward(p, cfg, np.concatenate([prompt, answer]))
    table = jax.nn.log_softmax(states[len(prompt) - 1:-1] @ p['embed'].T, -1)
    total += table[np.arange(len(answer)), answer].sum() - 0.1 * (jnp.exp(table) * table).sum()
  return total


@pytest.mark.parametrize('remat', [False, True])
def test_packed_equals_unpacked_in_value_and_gradient(remat):
  cfg, batch, p = dataclasses.replace(ref.CFG, remat=remat), ref.ragged(), ref.params()
  value, grad = jax.jit(jax.value_and_grad(shared_loss), static_argnums=1)(p, cfg, batch)
  want, want_grad = jax.value_and_grad(unpacked_loss)(p, cfg, batch)
  np.testing.assert_allclose(value, want, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, float(jnp.abs(b).max()))),
               grad, want_grad)


def tapped(p, batch, tap):
  return forward.forward_shared(p, ref.CFG, *batch, tap).attention


def whole_maps(p, batch, tap):
  out = []
  for b, g, prompt, answer in each_sequence(batch):
    n, t = len(prompt), len(answer)
    _, maps = ref.forward(p, ref.CFG, np.concatenate([prompt, answer]))
    indicator = tap.indicator[b][batch[1][b]]
    out.append(jnp.einsum('LNTS,T,SF->LF', maps[:, :, n:, :n], tap.row_weight[b, g, :t], indicator) / ref.CFG.n_heads)
  return jnp.stack(out, 1).reshape(ref.CFG.n_layers, *batch[2].shape[:2], -1)


def test_tap_equals_whole_attention_maps_in_value_and_gradient():
  batch, p = ref.ragged(), ref.params()
  r = np.random.default_rng(1)
  weight = r.random(batch[2].shape) * batch[3]
  weight = jnp.asarray(weight / weight.sum(-1, keepdims=True), jnp.float32)
  tap = forward.AttentionTap(jnp.asarray(r.random((*batch[0].shape, 4)) > 0.5, jnp.float32), weight)
  np.testing.assert_allclose(jax.jit(tapped)(p, batch, tap), whole_maps(p, batch, tap), atol=1e-6)
  probe = jnp.asarray(r.normal(size=(2, 3, 2, 4)), jnp.float32)
  grad = jax.jit(jax.grad(lambda p: (tapped(p, batch, tap) * probe).sum()))(p)
  want = jax.grad(lambda p: (whole_maps(p, batch, tap) * probe).sum())(p)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * max(1.0, float(jnp.abs(b).max()))), grad, want)


def test_no_tap_gives_no_attention():
  assert forward.forward_shared(ref.params(), ref.CFG, *ref.ragged()).attention is None


def test_query_chunks_change_nothing(monkeypatch):
  batch, p = ref.ragged(), ref.params()
  tap = forward.AttentionTap(jnp.ones((*batch[0].shape, 1)), jnp.ones(batch[2].shape) / 5)
  run = jax.value_and_grad(lambda p: forward.forward_shared(p, ref.CFG, *batch, tap).attention[1].sum())
  value, grad = run(p)
  monkeypatch.setattr(attention, 'QUERY_CHUNK', 3)
  chunked, chunked_grad = run(p)
  np.testing.assert_allclose(chunked, value, rtol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), chunked_grad, grad)


def test_padding_and_batch_order_do_not_matter():
  prompt, prompt_valid, answer, answer_valid = batch = ref.ragged()
  p = ref.params()
  run = jax.jit(lambda *batch: forward.forward_shared(p, ref.CFG, *batch).hidden)
  hidden = run(*batch)
  junk = np.full((3, 4), 9)
  padded = run(np.concatenate([junk, prompt], 1), np.pad(prompt_valid, ((0, 0), (4, 0))), answer, answer_valid)
  np.testing.assert_allclose(padded, hidden, atol=2e-5)
  order = np.array([2, 0, 1])
  np.testing.assert_allclose(run(*(a[order] for a in batch)), hidden[order], atol=1e-6)


@pytest.mark.parametrize('segments', [0, 1, 2])
def test_extend_equals_the_plain_decoder(segments):
  """A sequence split into `segments` shared parts and an own block written in two calls."""
  p, cfg = ref.params(), ref.CFG
  tokens = np.random.default_rng(2).integers(0, cfg.vocab_size, 12)
  states, _ = ref.forward(p, cfg, tokens)
  _, whole = forward.prefill(p, cfg, tokens[None, :8], np.ones((1, 8), bool))
  cuts = {0: [], 1: [(0, 8)], 2: [(0, 5), (5, 8)]}[segments]
  masks = [np.ones((1, b - a), bool) if i == 0 else np.ones((1, 1, 1, b - a), bool) for i, (a, b) in enumerate(cuts)]
  shared = tuple((jax.tree.map(lambda x, a=a, b=b: x[:, :, a:b], whole), m) for (a, b), m in zip(cuts, masks))
  begin = 8 if segments else 0
  size = 12 - begin
  own = cache.empty(cfg, 1, 2, size + 1)
  run = jax.jit(forward.extend, static_argnums=1)
  order = np.arange(size + 1)[None] <= np.arange(size)[:, None]
  first = size - 1
  block = np.broadcast_to(tokens[begin:], (1, 2, size))
  positions = np.broadcast_to(np.arange(begin, 12), (1, 2, size))
  a, own = run(p, cfg, block[..., :first], positions[..., :first], shared, own, order[None, None, :first], 0)
  b, own = run(p, cfg, block[..., first:], positions[..., first:], shared, own, order[None, None, first:], first)
  got = jnp.concatenate([a, b], 2)
  for g in range(2):
    np.testing.assert_allclose(got[0, g], states[begin:], atol=1e-5)
  assert not own.k[..., -1, :, :].any()


def test_a_row_without_visible_keys_is_zero_and_has_no_nan_gradient():
  q = jnp.ones((1, 1, 2, 2, 4))
  k = jnp.ones((1, 1, 3, 1, 4))
  mask = jnp.array([[False] * 3, [True, True, False]])[None, None]

  def run(q):
    return attention.attend(q, (), (k, 2 * k, mask))[0]

  np.testing.assert_allclose(run(q)[0, 0, :, 0, 0], [0, 2])
  assert np.isfinite(jax.grad(lambda q: run(q).sum())(q)).all()


def test_bfloat16_activations_stay_near_float32():
  batch, p = ref.ragged(), ref.params()
  cfg = dataclasses.replace(ref.CFG, compute_dtype='bfloat16')
  low = forward.forward_shared(p, cfg, *batch)
  assert low.hidden.dtype == jnp.bfloat16
  high = forward.forward_shared(p, ref.CFG, *batch)
  np.testing.assert_allclose(low.prompt_hidden[:, -1].astype(np.float32), high.prompt_hidden[:, -1], atol=0.15)
