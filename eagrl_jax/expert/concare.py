"""ConCare (Ma et al., AAAI 2020): a GRU and a time-aware attention per channel, then attention across channels.

Differences from the released code, all of them repairs: the time distance is anchored on
each patient's own last visit, so padding changes nothing; no dead LayerNorm; a batch of one
has covariance 0 and no division by zero.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from eagrl_jax import masked
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
    if self.hidden % self.heads:
      raise EagrlError(f'expert.heads: {self.heads} does not divide expert.hidden={self.hidden}; choose a divisor')
    if self.time_attention not in TIME_ATTENTION:
      raise EagrlError(f'expert.time_attention: {self.time_attention!r} is unknown; choose one of {TIME_ATTENTION}')
    if self.time_unit not in ('visit', *HOURS_PER_UNIT):
      raise EagrlError(f"expert.time_unit: {self.time_unit!r} is unknown; choose 'visit', 'hour' or 'day'")
    if not 0 <= self.dropout < 1:
      raise EagrlError(f'expert.dropout: {self.dropout} is outside [0, 1)')


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


def decov(context: Array) -> Array:
  """DeCov penalty ½(‖C‖² − ‖diag C‖²) of every token's units over the batch, summed over tokens.

  Args:
    context: [B, F, H]; B = 1 gives 0.
  """
  b, _, h = context.shape
  centred = (context - jnp.mean(context, 0, keepdims=True)) / max(b - 1, 1) ** 0.5
  variance = jnp.sum(centred**2, 0)  # [F, H]
  # ‖XᵀX‖ = ‖XXᵀ‖: take the smaller product.
  gram = jnp.einsum('bfh,cfh->fbc', centred, centred) if b < h else jnp.einsum('bfh,bfg->fhg', centred, centred)
  return 0.5 * (jnp.sum(gram**2) - jnp.sum(variance**2))


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
    states, last = self._gru(batch)
    valid = batch.valid.T[:, None, :]  # [T, 1, B]
    query = jnp.einsum('fbh,fhk->fbk', last, self.weights['time_query'])
    key = jnp.einsum('fbk,fhk->fbh', query, self.weights['time_key'])  # W_x W_tᵀ h_last, one vector for all states
    score = jnp.sum(states * key[None], -1)  # [T, F, B]
    weight = masked.softmax(self._decay(score, self._distance(batch)), jnp.broadcast_to(valid, score.shape), axis=0)
    return jnp.sum(weight[..., None] * states, 0).transpose(1, 0, 2)

  def readout(self, tokens: Array, static: Array, *, deterministic: bool = True) -> tuple[Array, Array, Array]:
    """From tokens [B, F, H] and statics [B, A] to what `__call__` returns."""
    w, cfg = self.weights, self.cfg
    dense = lambda name, x: x @ w[name] + w[f'{name}_bias'].reshape((1,) * (x.ndim - 1) + (-1,))
    x = jnp.concatenate([tokens, jnp.tanh(dense('static_token', static))[:, None, :]], 1)
    b, n, h = x.shape
    drop = self._dropout(b, n, deterministic)
    x = drop(x, slice(0, h))
    split = lambda y: y.reshape(b, n, cfg.heads, h // cfg.heads)
    scores = jnp.einsum('bnhd,bmhd->bhnm', split(dense('query', x)), split(dense('key', x))) * (h // cfg.heads) ** -0.5
    context = jnp.einsum('bhnm,bmhd->bnhd', jax.nn.softmax(scores), split(dense('value', x))).reshape(b, n, h)
    x = x + drop(dense('mix', context), slice(h, 2 * h))
    x = x + drop(dense('ffn_out', nn.relu(dense('ffn_in', x))), slice(2 * h, 3 * h))
    attention = jax.nn.softmax(jnp.einsum('bnh,bh->bn', dense('final_key', x), dense('final_query', x[:, -1])))
    pooled = jnp.einsum('bn,bnh->bh', drop(attention, 3 * h), dense('final_value', x))
    return dense('head', pooled)[:, 0], attention, decov(context)

  def _dropout(self, rows: int, tokens: int, deterministic: bool) -> Callable[[Array, int | slice], Array]:
    """A function (x, units) that drops x by its part of one draw shared by the whole forward pass."""
    rate = self.cfg.dropout
    if deterministic or rate == 0:
      return lambda x, units: x
    keep = jax.random.bernoulli(self.make_rng('dropout'), 1 - rate, (rows, tokens, 3 * self.cfg.hidden + 1))
    return lambda x, units: jnp.where(keep[..., units], x / (1 - rate), 0)

  def _gru(self, batch: ExpertBatch) -> tuple[Array, Array]:
    """All channels' GRUs in one scan over visits: states [T, F, B, H] and the last valid one [F, B, H]."""
    channels = [batch.values, batch.observed] if self.cfg.use_mask_channel else [batch.values]
    inputs = jnp.stack([x.transpose(1, 2, 0) for x in channels], 1)[..., None]  # [T, 1 or 2, F, B, 1]
    w_in, w_rec = self.weights['gru_in'][:, :, :, None, :], self.weights['gru_rec']
    bias, rec_bias = self.weights['gru_in_bias'][:, :, None, :], self.weights['gru_rec_bias'][:, None, :]

    def step(h, now):
      x, valid = now
      # The input's product has width 1 or 2: inside the scan it fuses with the gates, outside it is memory traffic.
      gate = lambda i: bias[i] + sum(x[j] * w_in[i, j] for j in range(x.shape[0]))
      recur = lambda i: jnp.einsum('fbh,fhg->fbg', h, w_rec[i])
      reset, update = jax.nn.sigmoid(gate(0) + recur(0)), jax.nn.sigmoid(gate(1) + recur(1))
      candidate = jnp.tanh(gate(2) + reset * (recur(2) + rec_bias))
      h = jnp.where(valid[None, :, None], (1 - update) * candidate + update * h, h)  # padding repeats the last state
      return h, h

    start = jnp.zeros((self.channels, batch.values.shape[0], self.cfg.hidden), jnp.float32)
    last, states = jax.lax.scan(step, start, (inputs, batch.valid.T))
    return states, last

  def _distance(self, batch: ExpertBatch) -> Array:
    """Δ back from each patient's own last visit, 0 on padding. `-> [T, 1, B]`."""
    if self.cfg.time_unit == 'visit':
      order = jnp.cumsum(batch.valid.astype(jnp.float32), 1)
    else:
      order = jnp.where(batch.valid, batch.hours, 0) / HOURS_PER_UNIT[self.cfg.time_unit]
    delta = jnp.where(batch.valid, jnp.max(order, 1, keepdims=True) - order, 0)
    return delta.T[:, None, :]

  def _decay(self, score: Array, delta: Array) -> Array:
    """Time-aware energies `[T, F, B]`: older visits count less, the more so the weaker they match."""
    rate, match = self.weights['time_rate'][None, :, None], jax.nn.sigmoid(score)
    if self.cfg.time_attention == 'new':
      return jnp.tanh(score / (rate * jnp.log(jnp.e + (1 - match) * delta)))
    return nn.relu(match / (jax.nn.sigmoid(rate) * jnp.log(2.72 + 1 - match) * (delta + 1)))
