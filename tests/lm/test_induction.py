"""The given head looks one token back, and nothing else of the weights changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagrl_jax.lm import induction, layers, model, rope
from eagrl_jax.lm.config import LMConfig

CFG = LMConfig(vocab_size=50, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=32, d_ff=96, qk_norm=True)


def attention(params, cfg, tokens):
  """Causal maps of the first layer, `[N, T, T]`."""
  first = jax.tree.map(lambda x: x[0], params['layers'])
  cos, sin = rope.angles(cfg, jnp.arange(len(tokens)))
  q, k, _ = layers.qkv(first, cfg, layers.embed(params, cfg, tokens), cos, sin)
  scores = jnp.einsum('TNH,SNH->NTS', q, jnp.repeat(k, cfg.n_heads // cfg.n_kv_heads, 1)) * cfg.head_dim**-0.5
  return jax.nn.softmax(jnp.where(jnp.tri(len(tokens), dtype=bool), scores, -jnp.inf), -1)


@pytest.mark.parametrize('qk_norm', [True, False])
def test_the_head_looks_at_the_token_before(qk_norm):
  cfg = dataclasses.replace(CFG, qk_norm=qk_norm)
  plain = model.init(cfg, jax.random.key(0))
  params = induction.look_back(plain, cfg)
  tokens = np.random.default_rng(0).integers(0, cfg.vocab_size, 200)
  before = jax.vmap(jnp.diag, (0, None))(attention(params, cfg, tokens), -1)  # [N, T - 1]
  assert before[0].mean() > 0.4 and (before[0] > 0.2).mean() > 0.8
  assert before[2:].mean() < 0.1  # heads with keys of their own
  assert jax.vmap(jnp.diag, (0, None))(attention(plain, cfg, tokens), -1)[0].mean() < 0.1


def test_other_layers_are_left_alone():
  plain = model.init(CFG, jax.random.key(0))
  params = induction.look_back(plain, CFG)
  assert jax.tree.structure(params) == jax.tree.structure(plain)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1:], b[1:]), params['layers'], plain['layers'])
  np.testing.assert_array_equal(params['embed'][:, 1:], plain['embed'][:, 1:])
