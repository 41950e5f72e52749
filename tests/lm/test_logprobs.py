from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import lm_reference as ref
import numpy as np
import pytest

from eagrl_jax.lm import layers, logprobs
from eagrl_jax.mesh import local_mesh


def plain(p, cfg, hidden, targets):
  head = p['embed'].T if cfg.tie_embeddings else p['lm_head']
  table = jax.nn.log_softmax(hidden @ head, -1)
  picked = jnp.take_along_axis(table, targets[..., None], -1)[..., 0]
  return picked, -(jnp.exp(table) * table).sum(-1)


@pytest.mark.parametrize('tied', [True, False])
def test_equals_log_softmax_in_value_and_gradient_over_several_chunks(tied, monkeypatch):
  monkeypatch.setattr(logprobs, 'CHUNK_LOGITS', 1)  # 64 rows a chunk, the least
  cfg = dataclasses.replace(ref.CFG, tie_embeddings=tied)
  p = ref.params(cfg)
  r = np.random.default_rng(0)
  hidden = jnp.asarray(r.normal(size=(3, 50, cfg.d_model)) * 4, jnp.float32)
  targets = r.integers(0, cfg.vocab_size, (3, 50))
  weight = jnp.asarray(r.normal(size=(2, 3, 50)), jnp.float32)

  def loss(fn):
    return lambda p, h: sum((a * w).sum() for a, w in zip(fn(p, cfg, h, targets), weight))

  for got, want in zip(logprobs.token_logprobs(p, cfg, hidden, targets), plain(p, cfg, hidden, targets)):
    np.testing.assert_allclose(got, want, atol=1e-5)
  got = jax.grad(loss(logprobs.token_logprobs), (0, 1))(p, hidden)
  want = jax.grad(loss(plain), (0, 1))(p, hidden)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, float(jnp.abs(b).max()))), got, want)


@pytest.mark.parametrize('rows', [1, 64, 65])
def test_decoding_from_the_heads_side_gives_the_same_logits(rows, monkeypatch):
  monkeypatch.setattr(logprobs, 'WIDE_HEAD', 2)
  p = ref.params()
  hidden = jnp.asarray(np.random.default_rng(1).normal(size=(rows, ref.CFG.d_model)), jnp.float32)
  decode = jax.jit(lambda h: logprobs.decode_logits(p, ref.CFG, h))
  np.testing.assert_allclose(decode(hidden), logprobs.logits(p, ref.CFG, hidden), rtol=1e-5, atol=1e-6)
  # Both barriers are there for few rows, none for many.
  assert ('optimization_barrier' in decode.lower(hidden).as_text()) == (rows <= logprobs.FEW_ROWS)


@pytest.mark.parametrize('tied', [True, False])
def test_logits_of_a_few_words_are_those_of_all(tied):
  cfg = dataclasses.replace(ref.CFG, tie_embeddings=tied)
  p, words = ref.params(cfg), jnp.array([5, 0])
  hidden = jnp.asarray(np.random.default_rng(2).normal(size=(3, 2, cfg.d_model)), jnp.float32)
  few = jax.jit(lambda h: logprobs.word_logits(p, cfg, h, words))
  np.testing.assert_allclose(few(hidden), logprobs.logits(p, cfg, hidden)[..., words], rtol=1e-5, atol=1e-6)
  assert f'3x2x{cfg.vocab_size}' not in few.lower(hidden).as_text()


def test_forbidden_tokens_leave_the_entropy_finite():
  logp, entropy = logprobs.log_prob_and_entropy(jnp.array([[0.0, -jnp.inf, 0.0]]), jnp.array([2]))
  np.testing.assert_allclose((logp, entropy), [[-np.log(2)], [np.log(2)]], rtol=1e-6)


def test_the_whole_logit_matrix_is_never_built(monkeypatch):
  monkeypatch.setattr(logprobs, 'CHUNK_LOGITS', 1)
  p, rows = ref.params(), 640
  text = str(jax.make_jaxpr(jax.grad(lambda h: logprobs.token_logprobs(p, ref.CFG, h, jnp.zeros(rows, int))[0].sum()))(
      jnp.ones((rows, ref.CFG.d_model))))
  assert f'64,{ref.CFG.vocab_size}]' in text
  assert f'{rows},{ref.CFG.vocab_size}]' not in text and f'10,64,{ref.CFG.vocab_size}]' not in text


@pytest.mark.parametrize(('ways', 'groups', 'backend', 'want'), [
    (1, 1, 'cpu', 64), (8, 1, 'cpu', 512), (1, 1, 'gpu', 2048), (8, 1, 'tpu', 2048), (8, 8, 'gpu', 8 * 2048),
    (64, 1, 'gpu', 64 * 55)])
def test_an_accelerator_takes_as_many_rows_as_pay_for_the_heads_gradient(ways, groups, backend, want):
  assert logprobs.chunk_rows(10**6, 151_936, ways, groups, backend) == want
  assert logprobs.chunk_rows(50, 151_936, ways, groups, backend) == 50
  # A small vocabulary is no reason for small chunks anywhere.
  assert logprobs.chunk_rows(10**6, 2048, ways, groups, backend) == 4096 * ways


def test_one_device_places_nothing():
  p, tokens = ref.params(), jnp.zeros((8, 3), int)

  def loss(p):
    hidden = layers.embed(p, ref.CFG, tokens)
    return logprobs.token_logprobs(p, ref.CFG, hidden, tokens)[0].sum() + logprobs.decode_logits(
        p, ref.CFG, hidden[:, 0]).sum()

  bare = str(jax.make_jaxpr(jax.grad(loss))(p))
  with jax.set_mesh(local_mesh(1)):
    assert 'sharding_constraint' not in str(jax.make_jaxpr(jax.grad(loss))(p))
  assert 'sharding_constraint' not in bare
