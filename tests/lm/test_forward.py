"""Shared-prefix forward against a plain decoder, one sequence at a time."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import lm_reference as ref
import numpy as np
import pytest

from eagrl_jax.lm import attention, cache, forward, logprobs

BATCH = ref.ragged()
assert_close = functools.partial(jax.tree.map, functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5))


def each_sequence():
  prompt, prompt_valid, answer, answer_valid = BATCH
  for b in range(len(prompt)):
    for g in range(answer.shape[1]):
      yield b, g, prompt[b][prompt_valid[b]], answer[b, g][answer_valid[b, g]]


def shared_loss(p, cfg):
  out = forward.forward_shared(p, cfg, *BATCH)
  logp, entropy = logprobs.token_logprobs(p, cfg, out.hidden, BATCH[2])
  return jnp.where(BATCH[3], logp + 0.1 * entropy, 0).sum()


def unpacked_loss(p):
  total = 0.0
  for _, _, prompt, answer in each_sequence():
    states, _ = ref.forward(p, ref.CFG, np.concatenate([prompt, answer]))
    table = jax.nn.log_softmax(states[len(prompt) - 1:-1] @ p['embed'].T, -1)
    total += table[np.arange(len(answer)), answer].sum() - 0.1 * (jnp.exp(table) * table).sum()
  return total


@pytest.mark.parametrize(('remat', 'chunk'), [('none', 256), ('dots', 256), ('full', 3)])
def test_packed_equals_unpacked_in_value_and_gradient(remat, chunk, monkeypatch):
  monkeypatch.setattr(attention, 'QUERY_CHUNK', chunk)
  cfg = dataclasses.replace(ref.CFG, remat=remat)
  assert_close(jax.jit(jax.value_and_grad(shared_loss), static_argnums=1)(ref.params(), cfg),
               jax.value_and_grad(unpacked_loss)(ref.params()))


@pytest.mark.parametrize(('remat', 'kept'), [('none', True), ('dots', True), ('full', False)])
def test_products_of_the_mlp_are_kept_but_where_whole_layers_are_computed_again(remat, kept):
  cfg = dataclasses.replace(ref.CFG, remat=remat)
  backward = lambda p: jax.vjp(functools.partial(shared_loss, cfg=cfg), p)[1]
  saved = jax.tree.leaves(jax.eval_shape(backward, ref.params()))
  states = [x.shape for x in saved if x.ndim >= 4 and x.shape[-1] == cfg.d_ff]  # [L, B, ..., F]; weights are [L, D, F]
  # Gate and up, of prompts and of answers.
  assert (len(states) >= 4) == kept and bool(states) == kept, states


def tapped(p, tap):
  return forward.forward_shared(p, ref.CFG, *BATCH, tap).attention


def whole_maps(p, tap):
  out = []
  for b, g, prompt, answer in each_sequence():
    n, t = len(prompt), len(answer)
    _, maps = ref.forward(p, ref.CFG, np.concatenate([prompt, answer]))
    indicator = tap.indicator[b][BATCH[1][b]]
    rows, heads = tap.row_weight[b, g, :t], np.asarray(tap.head_weight)
    out.append(jnp.einsum('LNTS,T,N,SF->LF', maps[:, :, n:, :n], rows, heads, indicator))
  return jnp.stack(out, 1).reshape(ref.CFG.n_layers, *BATCH[2].shape[:2], -1)


@pytest.mark.parametrize('heads', [(0.25, 0.25, 0.25, 0.25), (0.75, 0.25, 0.0, 0.0)])
def test_tap_equals_whole_attention_maps_in_value_and_gradient(heads, monkeypatch):
  monkeypatch.setattr(attention, 'QUERY_CHUNK', 3)
  r = np.random.default_rng(1)
  weight = r.random(BATCH[2].shape) * BATCH[3]
  weight = (weight / weight.sum(-1, keepdims=True)).astype(np.float32)
  tap = forward.AttentionTap((r.random((*BATCH[0].shape, 4)) > 0.5).astype(np.float32), weight,
                             jnp.asarray(heads))
  probe = r.normal(size=(2, 2, 2, 4)).astype(np.float32)

  def run(attention_of, compiled):
    def scored(p):
      read = attention_of(p, tap)
      return (read * probe).sum(), read
    (_, read), grad = compiled(jax.value_and_grad(scored, has_aux=True))(ref.params())
    return read, grad

  got, want = run(tapped, jax.jit), run(whole_maps, lambda f: f)
  assert np.ptp(want[0]) > 0.05 and np.abs(want[1]['layers']['wq']).max() > 1e-3
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), got, want)


def test_no_tap_gives_no_attention():
  out = jax.eval_shape(lambda p: forward.forward_shared(p, ref.CFG, *BATCH), ref.params())
  assert out.attention is None


def test_padding_and_batch_order_do_not_matter():
  prompt, prompt_valid, answer, answer_valid = BATCH
  p = ref.params()
  run = jax.jit(lambda *batch: forward.forward_shared(p, ref.CFG, *batch).hidden)
  hidden = run(*BATCH)
  padded = run(np.pad(prompt, ((0, 0), (4, 0)), constant_values=9), np.pad(prompt_valid, ((0, 0), (4, 0))),
               np.where(answer_valid, answer, 5), answer_valid)
  real = answer_valid[..., None]
  np.testing.assert_allclose(padded * real, hidden * real, atol=1e-5)
  order = np.array([1, 0])
  np.testing.assert_allclose(run(*(a[order] for a in BATCH)), hidden[order], atol=1e-6)


@pytest.mark.parametrize('shallow', [False, True])
@pytest.mark.parametrize('segments', [0, 1, 2])
def test_extend_equals_the_plain_decoder(segments, shallow):
  """A sequence split into `segments` shared parts and an own block written in two calls."""
  p, cfg = ref.params(), ref.CFG
  tokens = np.random.default_rng(2).integers(0, cfg.vocab_size, 12)
  states, _ = ref.forward(p, cfg, tokens)
  _, whole = forward.prefill(p, cfg, tokens[None, :8], np.ones((1, 8), bool))
  cuts = {0: [], 1: [(0, 8)], 2: [(0, 5), (5, 8)]}[segments]
  masks = [np.ones((1, b - a), bool) if i == 0 else np.ones((1, 1, 1, b - a), bool) for i, (a, b) in enumerate(cuts)]
  shared = tuple((jax.tree.map(lambda x, a=a, b=b: x[..., a:b, :], whole), m) for (a, b), m in zip(cuts, masks))
  begin = 8 if segments else 0
  size = 12 - begin
  own = cache.empty(cfg, 1, 2, size + 1)
  if shallow:  # no scan over layers
    p = p | {'layers': cache.by_layer(p['layers'], cfg)}
    shared, own = tuple((cache.by_layer(kv, cfg), m) for kv, m in shared), cache.by_layer(own, cfg)
    assert isinstance(own, tuple)
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
  assert not cache.stacked(own).k[..., -1, :].any()


def test_a_row_without_visible_keys_is_zero_and_has_no_nan_gradient():
  q = jnp.ones((1, 1, 2, 2, 4))
  k = jnp.ones((1, 1, 1, 3, 4))
  mask = jnp.array([[False] * 3, [True, True, False]])[None, None]

  def run(q):
    return attention.attend(q, (), (k, 2 * k, mask))[0]

  np.testing.assert_allclose(run(q)[0, 0, :, 0, 0], [0, 2])
  assert np.isfinite(jax.grad(lambda q: run(q).sum())(q)).all()


def test_bfloat16_activations_stay_near_float32():
  run = jax.jit(forward.forward_shared, static_argnums=1)
  low = run(ref.params(), dataclasses.replace(ref.CFG, compute_dtype='bfloat16'), *BATCH)
  assert low.hidden.dtype == jnp.bfloat16
  high = run(ref.params(), ref.CFG, *BATCH)
  np.testing.assert_allclose(low.prompt_hidden[:, -1].astype(np.float32), high.prompt_hidden[:, -1], atol=0.15)
