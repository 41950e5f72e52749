"""From answers as read to the batch of an update: joint reward, group advantage, upper clip, in one jit."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct

from eagrl_jax import masked
from eagrl_jax.rl import advantages, alignment, clip, rewards
from eagrl_jax.rl.clip import ClipConfig
from eagrl_jax.rl.rewards import RewardConfig
from eagrl_jax.rl.update import RLBatch
from eagrl_jax.types import Array, ArrayLike, PromptBatch, Rollout


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
  """How answers are judged; hashable, a jit static.

  Attributes:
    advantage: one of `advantages.KINDS`.
    dynamic_sampling: drop groups whose rewards are all equal.
    overlong_buffer: tokens before the limit from which length costs reward; 0 = off.
    attention_reward: weight of the agreement of the policy's attention with the expert (Jaccard index of the two
      top-K sets) beside the joint reward; 0 = off.
  """

  reward: RewardConfig
  clip: ClipConfig
  advantage: str = 'grpo'
  dynamic_sampling: bool = False
  overlong_buffer: int = 0
  attention_reward: float = 0.0


@struct.dataclass
class Answers:
  """What a rollout's answers say and where."""

  prob: ArrayLike  # [B, G] float32
  parsed: ArrayLike  # [B, G] bool
  named: ArrayLike  # [B, G, P] int32 feature ids in written order, -1 padding
  key_mask: ArrayLike  # [B, G, T] bool, tokens inside <Important Features>
  align_mask: ArrayLike  # [B, G, T] bool, tokens from <Important Features> on


@functools.partial(jax.jit, static_argnums=0)
def judge(cfg: JudgeConfig, prompt: PromptBatch, rollout: Rollout, answers: Answers, label: ArrayLike,
          salience: ArrayLike, attention: ArrayLike | None = None) -> tuple[RLBatch, dict[str, Array]]:
  """The update's batch, and means over the rollout.

  Args:
    label: `[B]`. salience: `[B, F]`, the expert's; features that the prompt does not show cannot be named.
    attention: `[B, G, F]` of `reading.read_attention`, needed for `attention_reward` alone.
  """
  label, salience = jnp.asarray(label), jnp.asarray(salience)
  group = rollout.tokens.shape[1]
  spread = lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], group, *x.shape[1:]))
  shown = alignment.shown_features(prompt, salience.shape[-1])
  expert_mask = masked.top_k(salience * shown, cfg.reward.top_k)
  parts = rewards.joint_reward(jnp.asarray(answers.prob), jnp.asarray(answers.parsed), spread(label),
                               jnp.asarray(answers.named), spread(expert_mask), cfg.reward)
  total, length = parts.total, rollout.valid.sum(-1)
  if cfg.overlong_buffer:
    total += advantages.overlong_penalty(length, rollout.tokens.shape[-1], cfg.overlong_buffer)
  if cfg.attention_reward:
    assert attention is not None
    agreement = alignment.top_k_jaccard(spread(salience * shown), jnp.asarray(attention), cfg.reward.top_k)
    total += cfg.attention_reward * agreement
  useful = advantages.informative(total) if cfg.dynamic_sampling else jnp.ones(total.shape[0], bool)
  entropy = clip.key_entropy(rollout.entropy, rollout.valid, jnp.asarray(answers.key_mask))
  batch = RLBatch(
      prompt=prompt, rollout=rollout, advantage=advantages.group_advantages(total, cfg.advantage),
      eps_high=clip.adaptive_upper_clip(entropy, cfg.clip), weight=useful.astype(jnp.float32),
      salience=jnp.asarray(salience, jnp.float32), align_mask=jnp.asarray(answers.align_mask))
  figures = {
      'reward': total, 'reward_classification': parts.classification, 'reward_agreement': parts.agreement,
      'jaccard': parts.jaccard, 'parse_rate': answers.parsed, 'length': length, 'groups_used': batch.weight,
      'eps_high': batch.eps_high}
  return batch, {name: jnp.mean(value) for name, value in figures.items()}
