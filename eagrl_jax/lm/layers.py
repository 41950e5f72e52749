"""The pieces of one decoder layer, on activations of any leading shape."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from eagrl_jax.lm import lora, rope
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.matmul import matmul
from eagrl_jax.lm.precision import widen
from eagrl_jax.lm.project import project
from eagrl_jax.mesh import constrain
from eagrl_jax.types import Array, Params

PRODUCT = 'product'  # what products with weights are called where `jax.checkpoint` cannot see that they are products


def rms_norm(x: Array, gain: Array, eps: float) -> Array:
  """Root-mean-square norm over the last axis, computed in float32 at least, in the dtype of `x`."""
  high = widen(x)
  scale = jax.lax.rsqrt(jnp.mean(high * high, -1, keepdims=True) + eps)
  return (high * scale * _align(widen(gain), x.ndim)).astype(x.dtype)


def embed(params: Params, cfg: LMConfig, tokens: Array) -> Array:
  """Token ids `[...]` -> activations `[..., D]` in the compute dtype."""
  vocab = ('vocab', cfg.vocab_size)
  axes = ('batch',) + (None,) * (tokens.ndim - 1)
  # On several devices each looks up, for all tokens that meet its slice of the table, those that lie in it; the sums of
  # these are sent ([tokens, D]), never the table.
  table = constrain(params['embed'], ('vocab', 'embed'))
  x = constrain(table[constrain(tokens, axes, vocab)].astype(cfg.compute_dtype), (*axes, None), vocab)
  return constrain(x, (*axes, None))


def qkv(layer: Params, cfg: LMConfig, x: Array, cos: Array, sin: Array) -> tuple[Array, Array, Array]:
  """Normed, projected and rotated queries `[..., N, H]`, keys and values `[..., K, H]`."""
  x = rms_norm(x, layer['attn_norm'], cfg.norm_eps)
  heads = []
  for name in 'qkv':
    axes = ('embed', 'heads' if name == 'q' else 'kv_heads', 'head_dim')
    y = project(x, layer['w' + name].astype(x.dtype), axes, lambda x, w: jnp.einsum('...D,DNH->...NH', x, w))
    if (low := lora.apply(layer, cfg, 'w' + name, x)) is not None:
      y = y + low.reshape(y.shape)
    if cfg.qkv_bias:
      y = y + _align(layer['b' + name].astype(x.dtype), y.ndim)
    if cfg.qk_norm and name != 'v':
      y = rms_norm(y, layer[name + '_norm'], cfg.norm_eps)
    heads.append(y)
  q, k, v = heads
  return rope.rotate(q, cos, sin), rope.rotate(k, cos, sin), v


def finish(layer: Params, cfg: LMConfig, x: Array, mixed: Array) -> Array:
  """Adds the attention output `mixed [..., N, H]` to the residual `x [..., D]`, then the gated MLP."""
  # Heads folded first: a contraction over (N, H) makes XLA:CPU transpose the weight at every decode step.
  wo = layer['wo'].astype(x.dtype)
  mixed = mixed.reshape(*x.shape[:-1], -1)
  out = project(mixed, wo.reshape(-1, wo.shape[-1]), ('heads', 'embed'), jnp.matmul)
  x = x + _with_adapter(out, layer, cfg, 'wo', mixed)
  y = rms_norm(x, layer['mlp_norm'], cfg.norm_eps)

  def widened(name):
    out = project(y, layer[name].astype(y.dtype), ('embed', 'mlp'), lambda y, w: matmul(y, w, y.dtype))
    # Named because a policy of `jax.checkpoint` sees no product behind matmul's own backward pass.
    return _with_adapter(checkpoint_name(out, PRODUCT), layer, cfg, name, y)

  y = jax.nn.silu(widened('w_gate')) * widened('w_up')
  down = project(y, layer['w_down'].astype(y.dtype), ('mlp', 'embed'), jnp.matmul)
  return x + _with_adapter(down, layer, cfg, 'w_down', y)


def _with_adapter(out: Array, layer: Params, cfg: LMConfig, name: str, x: Array) -> Array:
  low = lora.apply(layer, cfg, name, x)
  return out if low is None else out + low


def _align(weight: Array, ndim: int) -> Array:
  return weight.reshape((1,) * (ndim - weight.ndim) + weight.shape)
