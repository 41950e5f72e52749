"""ConCare (Ma et al., AAAI 2020): a GRU and a time-aware attention per channel, then attention across channels.

Differences from the released code, all of them repairs: the time distance is anchored on
each patient's own last visit, so padding changes nothing; no dead LayerNorm; a batch of one
has covariance 0 and no division by zero.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from eagrl_jax import masked
from eagrl_jax.expert import gru
from eagrl_jax.types import Array, EagrlError, ExpertBatch, Params

TIME_ATTENTION = ('new', 'pyehr')
HOURS_PER_UNIT = {'hour': 1.0, 'day': 24.0}


@dataclasses.dataclass(frozen=True)
class ConCareConfig:
  """Shape and options of one expert; hashable, a jit static.

  Attributes:
    hidden: width of a channel's GRU state and of its token.
    heads: heads of the attention across channels; divides `hidden`.
    ffn: inner width of the feed-forward block.
    time_dim: width of the time attention's query and key.
    dropout: rate on tokens, both residual branches and the final attention.
    time_attention: 'new', the paper's tanh(s / (β ln(e + (1 − σ(s)) Δ))), or 'pyehr', the released
      σ(s) / (σ(ρ) ln(2.72 + 1 − σ(s)) (Δ + 1)).
    time_unit: what Δ counts back from the last visit: 'visit', 'hour' or 'day'.
    use_mask_channel: give each GRU the measured-or-not indicator as a second input.
    decov: weight of the DeCov penalty in the training loss.
  """

  hidden: int = 32
  heads: int = 4
  ffn: int = 64
  time_dim: int = 8
  dropout: float = 0.3
  time_attention: str = 'new'
  time_unit: str = 'visit'
  use_mask_channel: bool = False
  decov: float = 10.0

  def __post_init__(self):
    for name in ('hidden', 'heads', 'ffn', 'time_dim'):
      if getattr(self, name) < 1:
        raise EagrlError(f'expert.{name}={getattr(self, name)} must be at least 1')
    if self.hidden % self.heads:
      raise EagrlError(f'expert.heads: {self.heads} does not divide expert.hidden={self.hidden}; choose a divisor')
    if self.time_attention not in TIME_ATTENTION:
      raise EagrlError(f'expert.time_attention: {self.time_attention!r} is unknown; choose one of {TIME_ATTENTION}')
    if self.time_unit not in ('visit', *HOURS_PER_UNIT):
      raise EagrlError(f"expert.time_unit: {self.time_unit!r} is unknown; choose 'visit', 'hour' or 'day'")
    if not 0 <= self.dropout < 1:
      raise EagrlError(f'expert.dropout: {self.dropout} is outside [0, 1)')
    if self.decov < 0:
      raise EagrlError(f'expert.decov={self.decov} must not be negative')


@dataclasses.dataclass(frozen=True)
class WeightSpec:
  """One weight: its shape, and the range `offset ± bound` of its uniform initialisation."""

  shape: tuple[int, ...]
  bound: float = 0.0
  offset: float = 0.0


def declare(cfg: ConCareConfig, channels: int, static: int) -> dict[str, WeightSpec]:
  """Every weight of one expert.

  The leading 3 of the GRU's weights is reset, update, candidate: separate matmuls fuse better on CPU than one
  of width 3H. Of the recurrent biases only the candidate's is not redundant.
  """
  h, inputs = cfg.hidden, 2 if cfg.use_mask_channel else 1
  near = h**-0.5
  specs = {
      'gru_in': WeightSpec((3, inputs, channels, h), near),
      'gru_in_bias': WeightSpec((3, channels, h), near),
      'gru_rec': WeightSpec((3, channels, h, h), near),
      'gru_rec_bias': WeightSpec((channels, h), near),
      'time_query': WeightSpec((channels, h, cfg.time_dim), near),
      'time_key': WeightSpec((channels, h, cfg.time_dim), near),
      'time_rate': WeightSpec((channels,), offset=1.0 if cfg.time_attention == 'new' else 0.8),
  }
  dense = {'static_token': (static, h), 'query': (h, h), 'key': (h, h), 'value': (h, h), 'mix': (h, h),
           'ffn_in': (h, cfg.ffn), 'ffn_out': (cfg.ffn, h), 'final_query': (h, h), 'final_key': (h, h),
           'final_value': (h, h), 'head': (h, 1)}
  for name, shape in dense.items():
    specs[name] = WeightSpec(shape, max(shape[0], 1) ** -0.5)
    specs[f'{name}_bias'] = WeightSpec(shape[1:])
  return specs


def init(key: Array, cfg: ConCareConfig, channels: int, static: int) -> Params:
  """Parameters of one expert from one draw: a generator for each weight would take longer to compile than to train."""
  specs = declare(cfg, channels, static)
  ends = np.cumsum([math.prod(s.shape) for s in specs.values()])
  noise = jnp.split(jax.random.uniform(key, (int(ends[-1]),), jnp.float32, -1, 1), ends[:-1])
  return {name: s.offset + s.bound * x.reshape(s.shape) for (name, s), x in zip(specs.items(), noise, strict=True)}


def decov(context: Array, rows: Array | None = None) -> Array:
  """DeCov penalty ½(‖C‖² − ‖diag C‖²) of every token's units over the batch, summed over tokens.

  Args:
    context: [B, F, H]; B = 1 gives 0.
    rows: [B] bool, the patients that count; None counts all.
  """
  b, _, h = context.shape
  weight = jnp.ones(b) if rows is None else rows.astype(jnp.float32)
  n = jnp.sum(weight)
  centred = context - jnp.einsum('b,bfh->fh', weight, context)[None] / jnp.maximum(n, 1)
  centred *= (weight / jnp.maximum(n - 1, 1) ** 0.5)[:, None, None]
  variance = jnp.sum(centred**2, 0)  # [F, H]
  # ‖XᵀX‖ = ‖XXᵀ‖: take the smaller product.
  gram = jnp.einsum('bfh,cfh->fbc', centred, centred) if b < h else jnp.einsum('bfh,bfg->fhg', centred, centred)
  return 0.5 * (jnp.sum(gram**2) - jnp.sum(variance**2))


def cores() -> int:
  """Cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


class ConCare(nn.Module):
  """One expert. `encode` makes the channel tokens, `readout` the rest; `__call__` is both."""

  cfg: ConCareConfig
  channels: int
  static: int

  def setup(self):
    def initialiser(key, spec):
      return spec.offset + jax.random.uniform(key, spec.shape, jnp.float32, -spec.bound, spec.bound)

    specs = declare(self.cfg, self.channels, self.static)
    self.weights = {name: self.param(name, initialiser, spec) for name, spec in specs.items()}

  def __call__(self, batch: ExpertBatch, *, deterministic: bool = True) -> tuple[Array, Array, Array]:
    """Scores B patients.

    Args:
      batch: padded visits on the right; `label` is not read.
      deterministic: no dropout; otherwise pass `rngs={'dropout': key}`.
    Returns:
      logit [B]; attention [B, F+1], the static token last, rows sum to 1 when deterministic;
      the unweighted DeCov penalty.
    """
    return self.readout(self.encode(batch), jnp.asarray(batch.static), deterministic=deterministic)

  def encode(self, batch: ExpertBatch) -> Array:
    """Tokens of the channels, without dropout. `[B, T, F] -> [B, F, H]`."""
    return self._encode(batch, every_prefix=False)[0]

  def encode_prefixes(self, batch: ExpertBatch) -> Array:
    """Tokens as after each visit, from one pass over the visits. `[B, T, F] -> [T, B, F, H]`; padding means nothing."""
    return self._encode(batch, every_prefix=True)

  def _encode(self, batch: ExpertBatch, every_prefix: bool) -> Array:
    """Tokens as seen from Q visits, all or the last: `[Q, B, F, H]`."""
    w, cfg = self.weights, self.cfg
    valid = jnp.asarray(batch.valid)
    delta, seen = self._distance(batch, every_prefix)
    channels = [batch.values, batch.observed] if cfg.use_mask_channel else [batch.values]
    inputs = jnp.stack([jnp.asarray(x).transpose(2, 1, 0) for x in channels], 2)  # [F, T, I, B]

    def one(weights, x):
      states = gru.run(gru.Weights(*weights['gru']), x, valid.T)  # [B, T, H]
      at = states if every_prefix else states[:, -1:]  # padding repeats the last state
      score = jnp.einsum('bqk,btk->bqt', at @ weights['query'], states @ weights['key'])
      weight = masked.softmax(self._decay(score, delta, weights['rate']), seen)
      return jnp.einsum('bqt,bth->bqh', weight, states)

    per_channel = {
        'gru': (w['gru_in'].transpose(2, 0, 1, 3), w['gru_in_bias'].swapaxes(0, 1), tuple(w['gru_rec']),
                w['gru_rec_bias']),
        'query': w['time_query'], 'key': w['time_key'], 'rate': w['time_rate']}
    # A CPU takes a channel a core at a time: its weights and states then stay in the second-level cache. Computed
    # again in the backward pass, they do not go to memory and back, which takes longer than the arithmetic.
    tokens = jax.lax.platform_dependent(
        jax.tree.map(jnp.asarray, per_channel), inputs, default=jax.vmap(one),
        cpu=lambda *args: jax.lax.map(jax.checkpoint(lambda x: one(*x), prevent_cse=False), args, batch_size=cores()))
    return tokens.transpose(2, 1, 0, 3)

  def readout(self, tokens: Array, static: Array, rows: Array | None = None, *,
              deterministic: bool = True) -> tuple[Array, Array, Array]:
    """From tokens [B, F, H] and statics [B, A] to what `__call__` returns; `rows [B]` count in the penalty."""
    w, cfg = self.weights, self.cfg
    dense = lambda name, x: x @ w[name] + w[f'{name}_bias'].reshape((1,) * (x.ndim - 1) + (-1,))
    x = jnp.concatenate([tokens, jnp.tanh(dense('static_token', static))[:, None, :]], 1)
    b, n, h = x.shape
    drop = self._dropout(b, n, deterministic)
    x = drop(x, slice(0, h))
    heads = lambda name: jnp.split(dense(name, x), cfg.heads, -1)
    # One head at a time: a fourth axis would be moved, and copied, before and after every product.
    context = jnp.concatenate([
        jax.nn.softmax(jnp.einsum('bnd,bmd->bnm', q, k) * (h // cfg.heads) ** -0.5) @ v
        for q, k, v in zip(heads('query'), heads('key'), heads('value'), strict=True)], -1)
    x = x + drop(dense('mix', context), slice(h, 2 * h))
    x = x + drop(dense('ffn_out', nn.relu(dense('ffn_in', x))), slice(2 * h, 3 * h))
    # (x K) q = x (K q), and a (x V) = (a x) V: two products with every token become two with one vector a patient.
    query = dense('final_query', x[:, -1])
    energy = jnp.einsum('bnh,bh->bn', x, query @ w['final_key'].T) + (query @ w['final_key_bias'])[:, None]
    attention = jax.nn.softmax(energy)
    used = drop(attention, 3 * h)
    pooled = jnp.einsum('bn,bnh->bh', used, x) @ w['final_value']
    pooled += jnp.sum(used, 1, keepdims=True) * w['final_value_bias'][None]
    return dense('head', pooled)[:, 0], attention, decov(context, rows)

  def _dropout(self, rows: int, tokens: int, deterministic: bool) -> Callable[[Array, int | slice], Array]:
    """A function (x, units) that drops x by its part of one draw shared by the whole forward pass."""
    rate = self.cfg.dropout
    if deterministic or rate == 0:
      return lambda x, units: x
    # Two 16-bit draws from each 32 bits: on a CPU drawing costs more than a matmul of the readout.
    units = 3 * self.cfg.hidden + 1
    bits = jax.random.bits(self.make_rng('dropout'), (rows, tokens, -(-units // 2)))
    keep = jnp.concatenate([bits & 0xFFFF, bits >> 16], -1) < round((1 - rate) * 2**16)
    return lambda x, units: jnp.where(keep[..., units], x / (1 - rate), 0)

  def _distance(self, batch: ExpertBatch, every_prefix: bool) -> tuple[Array, Array]:
    """Δ back from each of Q visits, 0 where not seen, and which visits are seen from it: both `[B, Q, T]`."""
    valid = jnp.asarray(batch.valid)
    if self.cfg.time_unit == 'visit':
      order = jnp.cumsum(valid.astype(jnp.float32), 1)
    else:
      order = jnp.where(valid, batch.hours, 0) / HOURS_PER_UNIT[self.cfg.time_unit]
    visit = jnp.arange(valid.shape[1])
    seen = valid[:, None, :] & (visit[None, None, :] <= visit[None, :, None])
    if not every_prefix:
      seen = seen[:, -1:]
    here = jnp.max(jnp.where(seen, order[:, None, :], 0), -1, keepdims=True)
    return jnp.where(seen, here - order[:, None, :], 0), seen

  def _decay(self, score: Array, delta: Array, rate: Array) -> Array:
    """Time-aware energies `[B, Q, T]`: older visits count less, the more so the weaker they match."""
    match = jax.nn.sigmoid(score)
    if self.cfg.time_attention == 'new':
      return jnp.tanh(score / (rate * jnp.log(jnp.e + (1 - match) * delta)))
    return nn.relu(match / (jax.nn.sigmoid(rate) * jnp.log(2.72 + 1 - match) * (delta + 1)))
