"""The three ways through the decoder: fill a prompt, extend siblings, train on a prompt with its answers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from eagrl_jax.lm import attention, flash, layers, rope
from eagrl_jax.lm.cache import KV, heads_first
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.types import Array, ArrayLike, Params


@struct.dataclass
class AttentionTap:
  """Which attention to read: answer rows, weighted, and the prompt tokens that each feature owns."""

  indicator: Array  # [B, S, F] float32, 1 where prompt token s belongs to feature f
  row_weight: Array  # [B, G, T] float32, sums to 1 (or 0) over T
  head_weight: Array  # [N] float32, of the query heads, sums to 1


@struct.dataclass
class SharedForward:
  """What the update needs of a prompt and its answers."""

  hidden: Array  # [B, G, T, D], the states that predict answer tokens 0 .. T-1
  prompt_hidden: Array  # [B, S, D]
  attention: Array | None  # [L, B, G, F], None without a tap


def prefill(params: Params, cfg: LMConfig, tokens: Array, valid: Array) -> tuple[Array, KV]:
  """Runs left-padded prompts.

  Args:
    tokens, valid: `[B, S]`.

  Returns:
    The last position's normed state `[B, D]`, and the keys and values `[L, B, K, S, H]`.
  """
  cos, sin = rope.angles(cfg, _positions(valid))

  def step(x, layer):
    x, k, v = _prompt_layer(layer, cfg, x, valid, cos, sin)
    return x, KV(k, v)

  x, kv = jax.lax.scan(step, layers.embed(params, cfg, tokens), params['layers'])
  return layers.rms_norm(x[:, -1], params['final_norm'], cfg.norm_eps), kv


def extend(params: Params, cfg: LMConfig, tokens: Array, positions: Array, shared: tuple[tuple[Any, Array], ...],
           own: Any, own_mask: Array, write_at: Array | int) -> tuple[Array, Any]:
  """Runs T new tokens of each sibling against shared segments and the sibling's own block.

  The layers of the weights, of shared keys and of own ones are all stacked, or all `cache.by_layer`.

  Args:
    tokens, positions: `[B, G, T]`.
    shared: segments `(KV [L, B, K, S, H], valid [B, S] or broadcastable to [B, G, T, S])`, none or more.
    own: `[L, B, G, K, S2, H]`; carry it through a loop and it is updated in place.
    own_mask: which own slots each new token sees, its own slot included; broadcastable to `[B, G, T, S1]`. Slots from
      `S1 <= S2` on are not looked at.
    write_at: first slot written, the same for all siblings; `write_at + T <= S2`.

  Returns:
    Normed states `[B, G, T, D]`, and `own` with the new entries in slots `write_at .. write_at + T - 1`.
  """
  cos, sin = rope.angles(cfg, positions)

  def project(x, layer):
    q, k, v = layers.qkv(layer, cfg, x, cos, sin)
    return q, KV(heads_first(k), heads_first(v))

  def put(block, new, at):
    return jax.tree.map(lambda a, n: jax.lax.dynamic_update_slice(a, n.astype(a.dtype), at), block, new)

  def mix(x, layer, q, segments, block):
    seen = tuple((kv.k, kv.v, mask) for kv, (_, mask) in zip(segments, shared))
    mixed, _ = attention.attend(q, seen, (block.k, block.v, own_mask))
    return layers.finish(layer, cfg, x, mixed)

  def scanned(carry, xs):
    x, own = carry
    layer, index, segments = xs
    q, new = project(x, layer)
    own = put(own, jax.tree.map(lambda n: n[None], new), (index, 0, 0, 0, write_at, 0))
    size = (1, *own.k.shape[1:4], own_mask.shape[-1], own.k.shape[-1])
    block = jax.tree.map(lambda a: jax.lax.dynamic_slice(a, (index, 0, 0, 0, 0, 0), size)[0], own)
    return (mix(x, layer, q, segments, block), own), None

  x = layers.embed(params, cfg, tokens)
  if isinstance(own, tuple):
    written = []
    for i, layer in enumerate(params['layers']):
      q, new = project(x, layer)
      written.append(put(own[i], new, (0, 0, 0, write_at, 0)))
      block = jax.tree.map(lambda a: a[..., :own_mask.shape[-1], :], written[i])
      x = mix(x, layer, q, [kv[i] for kv, _ in shared], block)
    own = tuple(written)
  else:
    xs = (params['layers'], jnp.arange(cfg.n_layers), tuple(kv for kv, _ in shared))
    (x, own), _ = jax.lax.scan(scanned, (x, own), xs)
  return layers.rms_norm(x, params['final_norm'], cfg.norm_eps), own


def forward_shared(params: Params, cfg: LMConfig, prompt_tokens: ArrayLike, prompt_valid: ArrayLike,
                   answer_tokens: ArrayLike, answer_valid: ArrayLike, tap: AttentionTap | None = None) -> SharedForward:
  """Runs each prompt once together with its G answers; gradients flow through both.

  With a tap, `attention[l, b, g, f]` is the attention of answer row t (the query at answer token t) to the
  prompt tokens of feature f, weighted by `row_weight` over t and `head_weight` over heads: exact values and gradients.

  Args:
    prompt_tokens, prompt_valid: `[B, S]`, left-padded.
    answer_tokens, answer_valid: `[B, G, T]`, right-padded.
    tap: rows and features to read; None builds nothing.
  """
  prompt_tokens, prompt_valid = jnp.asarray(prompt_tokens), jnp.asarray(prompt_valid)
  answer_tokens, answer_valid = jnp.asarray(answer_tokens), jnp.asarray(answer_valid)
  start = prompt_valid.sum(-1, dtype=jnp.int32)[:, None, None]
  prompt_rope = rope.angles(cfg, _positions(prompt_valid))
  answer_rope = rope.angles(cfg, start + jnp.arange(answer_tokens.shape[-1])[None, None])

  def step(carry, layer):
    x, y = carry
    x, k, v = _prompt_layer(layer, cfg, x, prompt_valid, *prompt_rope)
    q, own_k, own_v = layers.qkv(layer, cfg, y, *answer_rope)
    weight = None
    if tap is not None:
      weight = jnp.asarray(tap.row_weight)[..., None] * jnp.asarray(tap.head_weight).reshape(1, 1, 1, -1)
    mixed, read = attention.causal(q, heads_first(own_k), heads_first(own_v), answer_valid,
                                   ((k, v, prompt_valid),), weight)
    if tap is not None:
      read = jnp.einsum('BGS,BSF->BGF', read, tap.indicator, precision='highest')
    return (x, layers.finish(layer, cfg, y, mixed)), read

  carry = (layers.embed(params, cfg, prompt_tokens), layers.embed(params, cfg, answer_tokens))
  (x, y), read = jax.lax.scan(_recomputed(step, cfg.remat), carry, params['layers'])
  x = layers.rms_norm(x, params['final_norm'], cfg.norm_eps)
  y = layers.rms_norm(y, params['final_norm'], cfg.norm_eps)
  first = jnp.broadcast_to(x[:, None, -1:], (*y.shape[:2], 1, y.shape[-1]))
  return SharedForward(jnp.concatenate([first, y[:, :, :-1]], axis=2), x, read)


def _recomputed(step, remat: str):
  """`step` with what its backward pass keeps: all of it, its matrix products with weights, or its inputs alone."""
  if remat == 'none':
    return step
  policies = jax.checkpoint_policies
  dots = policies.save_from_both_policies(policies.dots_with_no_batch_dims_saveable,
                                          policies.save_only_these_names(layers.PRODUCT))
  return jax.checkpoint(step, policy=dots if remat == 'dots' else None)


def _positions(valid: Array) -> Array:
  return jnp.maximum(jnp.cumsum(valid, -1, dtype=jnp.int32) - 1, 0)


def _prompt_layer(layer: Params, cfg: LMConfig, x: Array, valid: Array, cos: Array, sin: Array):
  q, k, v = layers.qkv(layer, cfg, x, cos, sin)
  mixed = flash.attend_prompt(q, k, v, valid, cfg)
  return layers.finish(layer, cfg, x, mixed), heads_first(k), heads_first(v)
