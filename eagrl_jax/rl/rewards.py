"""The joint reward of EAG-RL: how good the probability is, and how well the named features agree with the expert.

    R     = lam * R_cls + (1 - lam) * R_att
    R_cls = log(y p + (1-y)(1-p)) + delta,   delta = beta (p-1/2) if y=1 and p>1/2, beta (1/2-p) if y=0 and p<1/2
    R_att = |C & C_exp| / |C | C_exp|

R_cls is not a proper score (its maximiser is .149 at a true risk of .2); 'log' and 'brier' are.
Source: arXiv 2508.13579.
"""

from __future__ import annotations

import dataclasses
import math

import chex
import jax.numpy as jnp
from flax import struct

from eagrl_jax.types import Array, EagrlError

KINDS = ('eag', 'authors', 'log', 'brier')


@dataclasses.dataclass(frozen=True)
class RewardConfig:
  """Weights and switches of the joint reward.

  Attributes:
    kind: 'eag' (above), 'log' (no delta), 'brier' (R_cls = -(y-p)^2), or 'authors' (`authors_weights` times
      log-likelihood, separation and Jaccard; the separation is delta / beta).
    lam: weight of R_cls; not used by 'authors'.
    beta: slope of delta.
    clip_low, clip_high: the probability is clipped to this range first.
    unparsed: R_cls of an answer without a probability; None = the score of a certain mistake at the clip (log .01).
    top_k: only the first K distinct features that an answer names count, or listing all of them would pay.
  """

  kind: str = 'eag'
  lam: float = 0.6
  beta: float = 0.5
  clip_low: float = 0.01
  clip_high: float = 0.99
  unparsed: float | None = None
  top_k: int = 10
  authors_weights: tuple[float, float, float] = (1.0, 0.5, 0.1)

  def __post_init__(self):
    if self.kind not in KINDS:
      raise EagrlError(f'reward.kind={self.kind!r} is unknown; choose one of {", ".join(KINDS)}')
    if not 0 <= self.lam <= 1:
      raise EagrlError(f'reward.lam={self.lam} must lie in [0, 1]')
    if self.beta < 0:
      raise EagrlError(f'reward.beta={self.beta} must not be negative')
    if len(self.authors_weights) != 3:
      raise EagrlError(f'reward.authors_weights={self.authors_weights}: give three, of log-likelihood, separation and '
                       'Jaccard')
    if not 0 < self.clip_low < 0.5 < self.clip_high < 1:
      raise EagrlError(f'reward.clip_low={self.clip_low}, clip_high={self.clip_high}: need 0 < low < .5 < high < 1')
    if self.unparsed is not None and self.unparsed > (undecided := self._of(0.5)):
      raise EagrlError(f'reward.unparsed={self.unparsed}: an answer without a probability would earn more than one of '
                       f'.5, which earns {undecided:.3f}; give less')
    if self.top_k < 1:
      raise EagrlError(f'reward.top_k={self.top_k} must be at least 1')

  @property
  def unparsed_score(self) -> float:
    """R_cls of an answer that states no probability."""
    if self.unparsed is not None:
      return self.unparsed
    return self._of(min(self.clip_low, 1 - self.clip_high))

  def _of(self, likelihood: float) -> float:
    """R_cls where what happened was given a probability of .5 at most."""
    if self.kind == 'brier':
      return -((1 - likelihood) ** 2)
    return math.log(likelihood) * (self.authors_weights[0] if self.kind == 'authors' else 1)


@struct.dataclass
class RewardParts:
  """A reward and what it is made of, each of the shape of the probabilities."""

  total: Array  # [...]
  classification: Array  # [...] R_cls
  agreement: Array  # [...] R_att as rewarded: 0 where the answer is unparsed
  jaccard: Array  # [...] Jaccard of the named features, parsed or not


def classification_score(prob: Array, label: Array, cfg: RewardConfig) -> Array:
  """R_cls of a stated probability, expected over the outcome.

  Args:
    prob: `[...]`.
    label: `[...]` 0 or 1, or a probability of the outcome in between: the guide of a search.
  """
  chex.assert_equal_shape([prob, label])
  prob = jnp.clip(prob, cfg.clip_low, cfg.clip_high)
  label = label.astype(prob.dtype)
  return label * _score(prob, cfg) + (1 - label) * _score(1 - prob, cfg)


def _score(likelihood: Array, cfg: RewardConfig) -> Array:
  # Of the probability given to what happened.
  if cfg.kind == 'brier':
    return -((1 - likelihood) ** 2)
  if cfg.kind == 'log':
    return jnp.log(likelihood)
  separation = jnp.maximum(likelihood - 0.5, 0)
  if cfg.kind == 'authors':
    return cfg.authors_weights[0] * jnp.log(likelihood) + cfg.authors_weights[1] * separation
  return jnp.log(likelihood) + cfg.beta * separation


def jaccard(named: Array, expert_mask: Array, top_k: int) -> Array:
  """Jaccard index of the first `top_k` distinct named features and the expert's set; 0 when both are empty.

  Args:
    named: `[..., P]` feature ids in written order, -1 where there is none.
    expert_mask: `[..., F]` bool.
    top_k: how many distinct names count.
  """
  chex.assert_equal_shape_prefix([named, expert_mask], named.ndim - 1)
  written = named >= 0
  earlier = jnp.tril(jnp.ones((named.shape[-1],) * 2, bool), -1)  # [P, P]
  same = (named[..., :, None] == named[..., None, :]) & jnp.broadcast_to(earlier, (*named.shape, named.shape[-1]))
  fresh = written & ~same.any(-1)
  kept = fresh & (jnp.cumsum(fresh, -1) <= top_k)
  hit = jnp.take_along_axis(expert_mask, jnp.maximum(named, 0), -1, mode='fill', fill_value=False)
  shared = jnp.sum(kept & hit, -1)
  union = jnp.sum(kept, -1) + jnp.sum(expert_mask, -1) - shared
  return shared / jnp.maximum(union, 1).astype(jnp.float32)


def joint_reward(
    prob: Array, parsed: Array, label: Array, named: Array, expert_mask: Array, cfg: RewardConfig
) -> RewardParts:
  """Reward of stated probabilities and named features; jittable (`cfg` static).

  Args:
    prob: `[...]` stated probability; any finite or non-finite value where not parsed.
    parsed: `[...]` bool, the answer states a probability.
    label: `[...]` 0 or 1, or in between (`classification_score`).
    named: `[..., P]` feature ids in written order, -1 padded.
    expert_mask: `[..., F]` bool, the expert's set.
  """
  chex.assert_equal_shape([prob, parsed, label])
  agree = jaccard(named, expert_mask, cfg.top_k)
  score = classification_score(jnp.where(parsed, prob, 0.5), label, cfg)
  score = jnp.where(parsed, score, cfg.unparsed_score)
  rewarded = jnp.where(parsed, agree, 0)
  if cfg.kind == 'authors':
    total = score + cfg.authors_weights[2] * rewarded
  else:
    total = cfg.lam * score + (1 - cfg.lam) * rewarded
  return RewardParts(total=total, classification=score, agreement=rewarded, jaccard=agree)
