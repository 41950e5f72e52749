"""Attention rows and float32 logits are products of float32 also where a device would round their operands."""

from __future__ import annotations

import dataclasses

import jax
import jax.extend
import jax.numpy as jnp
import lm_reference as ref
import numpy as np
import pytest

from eagrl_jax.lm import forward, logprobs, model

HIGHEST = (jax.lax.Precision.HIGHEST,) * 2
TOKENS, ANSWERS = np.ones((2, 8), int), np.ones((2, 3, 4), int)
TAP = forward.AttentionTap(jnp.ones((2, 8, 5)), jnp.ones((2, 3, 4)), jnp.ones(ref.CFG.n_heads))


def float32_products(fn, *args):
  """The precision of every product of float32 with float32 in a function and its gradient."""
  def walk(jaxpr):
    for eqn in jaxpr.eqns:
      if eqn.primitive.name == 'dot_general' and all(v.aval.dtype == jnp.float32 for v in eqn.invars):
        yield eqn.params['precision']
      for inner in jax.extend.core.jaxprs_in_params(eqn.params):
        yield from walk(inner)

  return list(walk(jax.make_jaxpr(jax.value_and_grad(fn))(*args).jaxpr))


@pytest.mark.parametrize('tap', [None, TAP])
def test_attention_rows_of_a_bfloat16_policy(tap):
  cfg = dataclasses.replace(ref.CFG, compute_dtype='bfloat16')

  def loss(params):
    out = forward.forward_shared(params, cfg, TOKENS, TOKENS > 0, ANSWERS, ANSWERS > 0, tap)
    return out.hidden.astype(jnp.float32).sum() + (0 if tap is None else out.attention.sum())

  found = float32_products(loss, model.abstract(cfg))
  assert bool(found) == (tap is not None) and set(found) <= {HIGHEST}


@pytest.mark.parametrize('score', [
    lambda p, cfg, h: logprobs.token_logprobs(p, cfg, h, np.zeros(h.shape[:1], int))[0].sum(),
    lambda p, cfg, h: logprobs.decode_logits(p, cfg, h).sum()])
@pytest.mark.parametrize(('dtype', 'tied'), [('float32', True), ('float32', False), ('bfloat16', True)])
def test_logits(score, dtype, tied, monkeypatch):
  monkeypatch.setattr(logprobs, 'WIDE_HEAD', 2)  # decode from the head's side too
  cfg = dataclasses.replace(ref.CFG, compute_dtype=dtype, tie_embeddings=tied)
  found = float32_products(lambda p: score(p, cfg, jnp.ones((3, cfg.d_model))), model.abstract(cfg))
  assert bool(found) == (dtype == 'float32') and set(found) <= {HIGHEST}
