"""Grouped-query attention over several key segments under one softmax.

A shared segment belongs to all G siblings of a prompt, so that its keys are read once for G queries;
the own segment belongs to one sibling. Scores, maximum and sum are float32 at least.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from eagrl_jax.lm.matmul import matmul
from eagrl_jax.lm.precision import widen
from eagrl_jax.masked import NEG_INF
from eagrl_jax.types import Array

Segment = tuple[Array, Array, Array]  # keys, values, mask
QUERY_CHUNK = 256  # rows of a causal map held at once
FLOOR = -1e20  # above NEG_INF: a row without a visible key gives zeros


def attend(q: Array, shared: tuple[Segment, ...], own: Segment | None,
           row_weight: Array | None = None) -> tuple[Array, Array | None]:
  """Attention of `q` to every segment together.

  Args:
    q: `[B, G, T, N, H]`, rotated.
    shared: segments of keys and values `[B, K, S, H]`, mask `[B, S]` or broadcastable to `[B, G, T, S]`.
    own: keys and values `[B, G, K, S, H]`, mask broadcastable to `[B, G, T, S]`; None for none.
    row_weight: `[B, G, T, N]`; with it the attention to the first shared segment is read out.

  Returns:
    `[B, G, T, N, H]`, and with `row_weight` the weighted sum over rows and heads, `[B, G, S]`.
  """
  b, g, t, n, h = q.shape
  kv_heads = (own or shared[0])[0].shape[-3]
  r = n // kv_heads
  q = (widen(q) * h**-0.5).astype(q.dtype).reshape(b, g, t, kv_heads, r, h)
  rows = q.transpose(0, 3, 1, 2, 4, 5).reshape(b, kv_heads, g * t * r, h)  # a shared key meets all siblings at once

  scores, peaks = [], []
  for k, _, mask in shared:
    s = matmul(rows, k.swapaxes(-1, -2)).reshape(b, kv_heads, g, t, r, -1)
    scores.append(jnp.where(_by_kv_head(mask), s, NEG_INF))
    peaks.append(scores[-1].max(-1).swapaxes(1, 2))
  if own is not None:
    k, _, mask = own
    s = matmul(q.transpose(0, 1, 3, 2, 4, 5).reshape(b, g, kv_heads, t * r, h), k.swapaxes(-1, -2))
    scores.append(jnp.where(mask[:, :, None, :, None], s.reshape(b, g, kv_heads, t, r, -1), NEG_INF))
    peaks.append(scores[-1].max(-1))
  peak = jax.lax.stop_gradient(jnp.maximum(_reduce(jnp.maximum, peaks), FLOOR))  # [B, G, K, T, R]

  weights, sums, mixed = [], [], []
  for i, (_, v, _) in enumerate((*shared, own) if own is not None else shared):
    is_shared = i < len(shared)
    w = jnp.exp(scores[i] - (peak.swapaxes(1, 2) if is_shared else peak)[..., None])
    total = w.sum(-1)
    weights.append(w)
    sums.append(total.swapaxes(1, 2) if is_shared else total)
    flat = w.astype(v.dtype).reshape(*v.shape[:-2], -1, v.shape[-2])
    out = matmul(flat, v).reshape(*w.shape[:-1], h)
    mixed.append(out.transpose(0, 2, 3, 1, 4, 5) if is_shared else out.transpose(0, 1, 3, 2, 4, 5))
  inverse = 1 / jnp.maximum(_reduce(jnp.add, sums), 1e-30)  # [B, G, K, T, R]
  out = _reduce(jnp.add, mixed) * inverse.transpose(0, 1, 3, 2, 4)[..., None]
  out = out.astype(q.dtype).reshape(b, g, t, n, h)
  if row_weight is None:
    return out, None
  # One row vector times the map: a product, because a broadcast and a sum would form another array of its size.
  by_head = row_weight.reshape(b, g, t, kv_heads, r).transpose(0, 1, 3, 2, 4)
  scale = (inverse * by_head).swapaxes(1, 2)  # [B, K, G, T, R]
  read = matmul(scale.reshape(b, kv_heads, g, 1, t * r), weights[0].reshape(b, kv_heads, g, t * r, -1), exact=True)
  return out, read[:, :, :, 0].sum(1)


def causal(q: Array, k: Array, v: Array, valid: Array, shared: tuple[Segment, ...] = (),
           row_weight: Array | None = None) -> tuple[Array, Array | None]:
  """`attend` of a block to itself, causally, and to shared segments; the map is never held whole.

  Query chunks see only the keys up to their own end, and the backward pass recomputes their scores.

  Args:
    q: `[B, G, T, N, H]`. k, v: `[B, G, K, T, H]`.
    valid: `[B, G, T]`, keys that may be seen.
    shared, row_weight: as in `attend`; shared masks must not depend on T.
  """
  t = q.shape[2]
  outs, reads = [], []
  for start in range(0, t, QUERY_CHUNK):
    end = min(start + QUERY_CHUNK, t)
    order = jnp.arange(end)[None, :] <= jnp.arange(start, end)[:, None]
    own = (k[..., :end, :], v[..., :end, :], valid[:, :, None, :end] & order[None, None])
    weight = None if row_weight is None else row_weight[:, :, start:end]
    out, read = jax.checkpoint(attend)(q[:, :, start:end], shared, own, weight)
    outs.append(out)
    reads.append(read)
  out = outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=2)
  return out, None if row_weight is None else _reduce(jnp.add, reads)


def _by_kv_head(mask: Array) -> Array:
  """`[B, S]` or `[B, G, T, S]` -> `[B, 1, G, T, 1, S]` (1 where broadcast)."""
  mask = mask[:, None, None] if mask.ndim == 2 else mask
  return mask[:, None, :, :, None]


def _reduce(combine, parts: list[Array]) -> Array:
  total = parts[0]
  for part in parts[1:]:
    total = combine(total, part)
  return total
