"""A plain decoder for one unpadded sequence: a loop over layers, repeated kv heads, whole attention maps, no cache."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from eagrl_jax.lm import model, rope
from eagrl_jax.lm.config import LMConfig

CFG = LMConfig(vocab_size=53, d_model=24, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=6, d_ff=40)


def params(cfg: LMConfig = CFG, embed: float = 0.5):
  """Initial weights with layers as loud as their inputs; an embedding of their size keeps gradients of order one."""
  p = model.init(cfg, jax.random.key(0))
  layers = {name: 10 * x if name in ('wo', 'w_down') else x for name, x in p['layers'].items()}
  return p | {'embed': p['embed'] * (embed * cfg.d_model**0.5), 'layers': layers}


@functools.partial(jax.jit, static_argnums=1)
def forward(p, cfg: LMConfig, tokens):
  """`tokens [T]` -> (normed states [T, D], attention maps [L, N, T, T])."""
  t, half = len(tokens), cfg.head_dim // 2
  theta = np.outer(np.arange(t), rope.frequencies(cfg))[:, None]

  def norm(x, gain):
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + cfg.norm_eps) * jnp.reshape(gain, (1, -1))

  def rotate(x):
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * np.cos(theta) - b * np.sin(theta), b * np.cos(theta) + a * np.sin(theta)], -1)

  x = p['embed'][tokens]
  maps = []
  for i in range(cfg.n_layers):
    w = {k: v[i] for k, v in p['layers'].items()}
    y = norm(x, w['attn_norm'])
    q, k, v = (jnp.tensordot(y, w[name], 1) for name in ('wq', 'wk', 'wv'))
    k, v = (jnp.repeat(a, cfg.n_heads // cfg.n_kv_heads, axis=1) for a in (rotate(k), v))
    scores = jnp.einsum('TNH,SNH->NTS', rotate(q), k) / np.sqrt(cfg.head_dim)
    maps.append(jax.nn.softmax(jnp.where(np.tri(t, dtype=bool)[None], scores, -jnp.inf), -1))
    x = x + jnp.tensordot(jnp.einsum('NTS,SNH->TNH', maps[-1], v), w['wo'], 2)
    y = norm(x, w['mlp_norm'])
    x = x + (jax.nn.silu(y @ w['w_gate']) * (y @ w['w_up'])) @ w['w_down']
  return norm(x, p['final_norm']), jnp.stack(maps)


def ragged(b: int = 2, g: int = 2, s: int = 7, t: int = 5, vocab: int = CFG.vocab_size, seed: int = 0):
  """Left-padded prompts and right-padded answers: tokens and valid of each."""
  r = np.random.default_rng(seed)
  prompt_valid = np.arange(s)[None] >= 2 * (np.arange(b)[:, None] % 3)
  answer_valid = np.arange(t)[None, None] < t - 2 * (np.arange(g)[None, :, None] % 2) + np.zeros((b, 1, 1), int)
  return (r.integers(0, vocab, (b, s)), prompt_valid, r.integers(0, vocab, (b, g, t)), answer_valid)
