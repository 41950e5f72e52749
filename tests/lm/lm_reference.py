"""A plain decoder for one unpadded sequence: loops over layers and heads, whole attention maps, no cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from eagrl_jax.lm import model, rope
from eagrl_jax.lm.config import LMConfig

CFG = LMConfig(vocab_size=53, d_model=24, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=6, d_ff=40)


def params(cfg: LMConfig = CFG, seed: int = 0):
  """Weights large enough that attention is far from uniform."""
  return jax.tree.map(lambda a: a * 3 if a.ndim > 1 else a, model.init(cfg, jax.random.key(seed)))


def forward(p, cfg: LMConfig, tokens):
  """`tokens [T]` -> (normed states [T, D], attention maps [L, N, T, T])."""
  t, half = len(tokens), cfg.head_dim // 2
  theta = np.outer(np.arange(t), rope.frequencies(cfg))

  def norm(x, gain):
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + cfg.norm_eps) * jnp.reshape(gain, (1, -1))

  def rotate(x):
    a, b = x[:, :half], x[:, half:]
    return jnp.concatenate([a * np.cos(theta) - b * np.sin(theta), b * np.cos(theta) + a * np.sin(theta)], -1)

  x = p['embed'][jnp.asarray(tokens)]
  maps = []
  for i in range(cfg.n_layers):
    w = {k: v[i] for k, v in p['layers'].items()}
    y = norm(x, w['attn_norm'])
    for n in range(cfg.n_heads):
      kv = n // (cfg.n_heads // cfg.n_kv_heads)
      q, k, v = rotate(y @ w['wq'][:, n]), rotate(y @ w['wk'][:, kv]), y @ w['wv'][:, kv]
      scores = jnp.where(np.tri(t, dtype=bool), q @ k.T / np.sqrt(cfg.head_dim), -jnp.inf)
      maps.append(jax.nn.softmax(scores, -1))
      x = x + maps[-1] @ v @ w['wo'][n]
    y = norm(x, w['mlp_norm'])
    x = x + (jax.nn.silu(y @ w['w_gate']) * (y @ w['w_up'])) @ w['w_down']
  return norm(x, p['final_norm']), jnp.stack(maps).reshape(cfg.n_layers, cfg.n_heads, t, t)


def ragged(b: int = 3, g: int = 2, s: int = 7, t: int = 5, vocab: int = CFG.vocab_size, seed: int = 0):
  """Left-padded prompts and right-padded answers: tokens and valid of each."""
  r = np.random.default_rng(seed)
  prompt_valid = np.arange(s)[None] >= np.arange(b)[:, None]
  answer_valid = np.arange(t)[None, None] < 2 + (np.arange(b)[:, None, None] + np.arange(g)[None, :, None]) % (t - 1)
  return (r.integers(0, vocab, (b, s)), prompt_valid, r.integers(0, vocab, (b, g, t)), answer_valid)
