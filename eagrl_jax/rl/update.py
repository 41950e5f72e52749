"""One policy update: shared-prefix forward, clipped objective, attention alignment, optimiser step, in one jit.

    total loss = -J + c_kl KL(policy || reference) + c_align L_align
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from flax import struct

from eagrl_jax.lm import lora
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.forward import AttentionTap, forward_shared
from eagrl_jax.lm.logprobs import token_logprobs
from eagrl_jax.rl import alignment, losses
from eagrl_jax.rl.gradients import Stats, accumulate, guarded_step, split
from eagrl_jax.types import Array, ArrayLike, EagrlError, Params, PromptBatch, Rollout

MAX_LOG_RATIO = 20.0  # far outside any clip; keeps exp and its gradient finite
ALIGN_ROWS = ('features', 'all')


@struct.dataclass
class RLBatch:
  """B groups of G scored answers."""

  prompt: PromptBatch
  rollout: Rollout
  advantage: ArrayLike  # [B, G] float32
  eps_high: ArrayLike  # [B, G] float32, upper clip of every answer
  weight: ArrayLike  # [B] float32, 0 drops a group (dynamic sampling, padding of a short batch)
  salience: ArrayLike  # [B, F] float32, the expert's
  align_mask: ArrayLike  # [B, G, T] bool, answer tokens from <Important Features> on
  ref_logprobs: ArrayLike | None = None  # [B, G, T] float32, only with a KL to a reference


@dataclasses.dataclass(frozen=True)
class UpdateConfig:
  """Switches of the update.

  Attributes:
    micro_batch: groups a forward and backward pass; must divide B. Does not change the result.
    reduction: 'token_mean' (DAPO) or 'sequence_mean' (GRPO).
    eps_low: lower clip.
    dual_clip: bound c > 1 on the objective of tokens with a negative advantage; None = off.
    kl_coef: weight of the k3 KL to the reference; needs `RLBatch.ref_logprobs`.
    c_align: weight of the alignment loss; 0 builds nothing of it.
    align: 'kl', 'js' or 'cosine'.
    align_rows: which answer tokens' attention is aligned: 'features' (`align_mask`) or 'all'.
    align_layers, align_heads: layers and query heads to average, negative from the last; () = all.
    align_per_token: divide a feature's mass by the length of its span.
    align_top_k: K of the reported attention Jaccard.
  """

  micro_batch: int
  reduction: str = 'token_mean'
  eps_low: float = 0.2
  dual_clip: float | None = None
  kl_coef: float = 0.0
  c_align: float = 0.0
  align: str = 'kl'
  align_rows: str = 'features'
  align_layers: tuple[int, ...] = ()
  align_heads: tuple[int, ...] = ()
  align_per_token: bool = False
  align_top_k: int = 10

  def __post_init__(self):
    choices = (('loss', self.reduction, losses.REDUCTIONS), ('align', self.align, alignment.KINDS),
               ('align_rows', self.align_rows, ALIGN_ROWS))
    for name, value, allowed in choices:
      if value not in allowed:
        raise EagrlError(f'rl.{name}={value!r} is unknown; choose one of {", ".join(allowed)}')
    if self.micro_batch < 1:
      raise EagrlError(f'rl.micro_batch={self.micro_batch} must be at least 1')
    if not 0 < self.eps_low < 1:
      raise EagrlError(f'rl.clip_low={self.eps_low} must lie in (0, 1)')
    if self.dual_clip is not None and self.dual_clip <= 1:
      raise EagrlError(f'rl.dual_clip={self.dual_clip} must exceed 1, or be 0 for off')
    if self.kl_coef < 0 or self.c_align < 0:
      raise EagrlError(f'rl.kl={self.kl_coef} and rl.c_align={self.c_align} must not be negative')


@struct.dataclass
class Weighted:
  """A batch with its tokens' and answers' weights in the mean over the whole batch."""

  batch: RLBatch
  token_weight: Array  # [B, G, T]
  rows: Array | None  # [B, G, T] bool, aligned answer tokens; None without an alignment loss
  align_weight: Array | None  # [B, G]


def weigh(batch: RLBatch, cfg: UpdateConfig) -> Weighted:
  """Weights of a whole batch, taken before it is split into micro-batches."""
  rollout, prompt = batch.rollout, batch.prompt
  chex.assert_equal_shape([rollout.tokens, rollout.valid, rollout.logprobs, batch.align_mask])
  chex.assert_equal_shape([batch.advantage, batch.eps_high])
  weight = jnp.asarray(batch.weight, jnp.float32)
  valid = jnp.asarray(rollout.valid)
  token_weight = losses.token_weights(valid, weight, cfg.reduction)
  if not cfg.c_align:
    return Weighted(batch=batch, token_weight=token_weight, rows=None, align_weight=None)
  rows = aligned_rows(cfg, valid, batch.align_mask)
  span = alignment.feature_indicator(prompt.feature, prompt.valid, batch.salience.shape[-1]).sum(1)
  expert = alignment.expert_salience(batch.salience, span)
  align_weight = alignment.alignment_weights(expert, rows, weight)
  return Weighted(batch=batch, token_weight=token_weight, rows=rows, align_weight=align_weight)


def aligned_rows(cfg: UpdateConfig, valid: Array, align_mask: ArrayLike) -> Array:
  """Answer tokens whose attention is aligned. `[B, G, T], [B, G, T] -> [B, G, T]` bool"""
  return valid if cfg.align_rows == 'all' else valid & align_mask


def attention_tap(lm_cfg: LMConfig, cfg: UpdateConfig, prompt: PromptBatch, rows: Array,
                  n_features: int) -> AttentionTap:
  """What the forward pass reads of its own attention: `rows [B, G, T]` over the features of the prompt."""
  indicator = alignment.feature_indicator(prompt.feature, prompt.valid, n_features)
  return AttentionTap(indicator, alignment.tap_rows(rows), alignment.tap_heads(cfg.align_heads, lm_cfg.n_heads))


def policy_loss(params: Params, part: Weighted, lm_cfg: LMConfig, cfg: UpdateConfig) -> tuple[Array, Stats]:
  """Loss of a (micro-)batch: a weighted sum, so the losses of micro-batches add up to the batch's."""
  batch, weight = part.batch, part.token_weight
  prompt, rollout = batch.prompt, batch.rollout
  tap = None
  if cfg.c_align:
    assert part.rows is not None  # weighed under the same config
    tap = attention_tap(lm_cfg, cfg, prompt, part.rows, batch.salience.shape[-1])
  out = forward_shared(params, lm_cfg, prompt.tokens, prompt.valid, rollout.tokens, rollout.valid, tap)
  logp, entropy = token_logprobs(params, lm_cfg, out.hidden, rollout.tokens)

  gap = jnp.where(rollout.valid, logp - rollout.logprobs, 0)
  log_ratio = jnp.clip(gap, -MAX_LOG_RATIO, MAX_LOG_RATIO)
  advantage = jnp.broadcast_to(batch.advantage[..., None], logp.shape)
  eps_high = jnp.broadcast_to(batch.eps_high[..., None], logp.shape)
  value = losses.clipped_surrogate(log_ratio, advantage, cfg.eps_low, eps_high, cfg.dual_clip)
  objective = jnp.sum(weight * value)
  low, high = losses.clip_active(log_ratio, advantage, cfg.eps_low, eps_high)
  counted = (weight > 0).astype(jnp.float32)
  sums = {
      'objective': objective,
      'entropy': jnp.sum(weight * entropy),
      'clip_low': jnp.sum(weight * low),
      'clip_high': jnp.sum(weight * high),
      'approx_kl': jnp.sum(weight * losses.k3(log_ratio)),
      'logp_gap_mean': jnp.sum(weight * jnp.abs(gap)),
  }
  peaks = {'ratio_max': jnp.max(counted * jnp.exp(log_ratio)), 'logp_gap_max': jnp.max(counted * jnp.abs(gap))}
  loss = -objective
  if cfg.kl_coef:
    assert batch.ref_logprobs is not None
    to_ref = jnp.where(rollout.valid, batch.ref_logprobs - logp, 0)
    sums['ref_kl'] = jnp.sum(weight * losses.k3(jnp.clip(to_ref, -MAX_LOG_RATIO, MAX_LOG_RATIO)))
    loss += cfg.kl_coef * sums['ref_kl']
  if tap is not None:
    assert out.attention is not None and part.align_weight is not None
    span = tap.indicator.sum(1)
    policy = alignment.policy_salience(out.attention, span, cfg.align_layers, cfg.align_per_token)
    expert = jnp.broadcast_to(alignment.expert_salience(batch.salience, span)[:, None, :], policy.shape)
    sums['align_loss'] = jnp.sum(part.align_weight * alignment.alignment_loss(expert, policy, cfg.align))
    sums['align_jaccard'] = jnp.sum(part.align_weight * alignment.top_k_jaccard(expert, policy, cfg.align_top_k))
    loss += cfg.c_align * sums['align_loss']
  sums['loss'] = loss
  return loss, jax.lax.stop_gradient(Stats(sums=sums, peaks=peaks))


def check_taps(cfg: UpdateConfig, lm_cfg: LMConfig) -> None:
  """Refuses layers and heads of attention that the policy does not have."""
  taps = (('layers', cfg.align_layers, lm_cfg.n_layers), ('heads', cfg.align_heads, lm_cfg.n_heads))
  for name, chosen, count in taps:
    outside = [i for i in chosen if not -count <= i < count]
    if outside:
      raise EagrlError(f'rl.align_{name} names {outside[0]}; the policy has {name} 0..{count - 1}')


def make_update(
    lm_cfg: LMConfig, optimizer: optax.GradientTransformation, cfg: UpdateConfig, state_shardings: Any
) -> jax.stages.Wrapped:
  """Compiled `(state, batch, frozen=NOTHING) -> (state, metrics)`; the state is donated.

  Args:
    state_shardings: `NamedSharding` of every leaf of the state (`train.state.state_shardings`), so that it leaves the
      step where it came in: placed elsewhere, it would compile the next step anew.

  Returns:
    The update. Its state is any flax.struct with `params`, `opt_state`, `step`; `frozen` are the weights that are not
    trained (`lm.lora.split`). Metrics are device scalars, NaN where no token or no aligned answer counts;
    `logp_gap_*` is |log p of trainer - log p of sampler|: on the first update of a batch, numerical mismatch alone.
  """
  check_taps(cfg, lm_cfg)

  def update(state, batch, frozen=lora.NOTHING):
    if cfg.kl_coef and batch.ref_logprobs is None:
      raise EagrlError('rl.kl > 0 needs the log-probabilities of a reference: RLBatch.ref_logprobs')
    loss_fn = lambda trained, part: policy_loss(lora.join(trained, frozen), part, lm_cfg, cfg)
    weighted = weigh(batch, cfg)
    grads, stats = accumulate(loss_fn, state.params, weighted, cfg.micro_batch)
    counts = weighted.token_weight.sum() > 0
    state, health = guarded_step(state, grads, stats.sums['loss'], optimizer, counts)
    aligned = counts if weighted.align_weight is None else weighted.align_weight.sum() > 0
    known = lambda name: aligned if name.startswith('align_') else counts | (name in ('loss', 'objective'))
    return state, {k: jnp.where(known(k), v, jnp.nan) for k, v in (stats.sums | stats.peaks).items()} | health

  return jax.jit(update, donate_argnums=0, out_shardings=(state_shardings, None))


def policy_steps(
    update: Callable[[Any, RLBatch], tuple[Any, dict[str, Array]]], state: Any, batch: RLBatch, epochs: int = 1,
    minibatches: int = 2
) -> tuple[Any, list[dict[str, Array]]]:
  """Several updates on one rollout batch: with a single one every ratio is 1 and the clip never acts.

  Args:
    epochs: passes over the batch.
    minibatches: updates a pass, each on its own share of the prompts; must divide B.

  Returns:
    The state and the metrics of each update; the first also holds `sampler_gap_mean`, `sampler_gap_max`: the mismatch
    of sampler and trainer at equal weights.

  Raises:
    EagrlError: no update at all, or prompts that cannot be shared out evenly.
  """
  if epochs < 1:
    raise EagrlError(f'rl.epochs={epochs} must be at least 1')
  prompts = len(batch.weight)
  if minibatches < 1 or prompts % minibatches:
    raise EagrlError(f'rl.minibatches={minibatches} must divide the {prompts} prompts of a step')
  parts = [batch] if minibatches == 1 else [_share(batch, i, minibatches) for i in range(minibatches)]
  history = []
  for part in parts * epochs:
    state, metrics = update(state, part)
    history.append(metrics)
  first = history[0]
  history[0] = first | {'sampler_gap_mean': first['logp_gap_mean'], 'sampler_gap_max': first['logp_gap_max']}
  return state, history


def over_updates(history: list[dict[str, Array]]) -> dict[str, float]:
  """One step's metrics from those of its updates: the largest `*_max`, the lowest `finite`, the mean of the others.

  An update of which nothing counts says nothing of what is NaN there.
  """
  figures = {}
  for name in history[0]:  # the first alone knows the sampler's gap
    values = [float(metrics[name]) for metrics in history if name in metrics]
    if name == 'finite':
      figures[name] = min(values)
      continue
    known = [value for value in values if not math.isnan(value)] if name not in ('loss', 'grad_norm') else values
    figures[name] = math.nan if not known else max(known) if name.endswith('_max') else sum(known) / len(known)
  return figures


@functools.partial(jax.jit, static_argnums=2)
def _share(batch: RLBatch, i: int, n: int) -> RLBatch:
  return jax.tree.map(lambda x: x[i], split(batch, n))
