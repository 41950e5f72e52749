"""The token-level policy objective. Everything is element-wise or a weighted sum.

A batch's tokens get weights that sum to one (`token_weights`) before it is split, so that micro-batches and devices
add up to exactly the full batch's mean, however many real tokens each holds.
"""

from __future__ import annotations

import chex
import jax.numpy as jnp

from eagrl_jax.types import Array, EagrlError

REDUCTIONS = ('token_mean', 'sequence_mean')


def token_weights(valid: Array, group_weight: Array, reduction: str = 'token_mean') -> Array:
  """Weight of every token in the mean over a batch; they sum to 1, or to 0 when no group counts.

  Args:
    valid: `[B, G, T]` bool.
    group_weight: `[B]`, 0 for a group that dynamic sampling drops.
    reduction: 'token_mean', every token counts alike (DAPO, arXiv 2503.14476), or 'sequence_mean', every answer does
      (GRPO, arXiv 2402.03300).

  Returns:
    `[B, G, T]` float32.
  """
  if reduction not in REDUCTIONS:
    raise EagrlError(f'rl.loss={reduction!r} is unknown; choose one of {", ".join(REDUCTIONS)}')
  chex.assert_rank([valid, group_weight], [3, 1])
  weight = valid * group_weight.astype(jnp.float32)[:, None, None]
  if reduction == 'sequence_mean':
    weight = weight / jnp.maximum(valid.sum(-1, keepdims=True), 1)
  total = weight.sum()
  return weight / jnp.where(total > 0, total, 1)


def clipped_surrogate(
    log_ratio: Array, advantage: Array, eps_low: float, eps_high: Array, dual_clip: float | None = None
) -> Array:
  """min(r A, clip(r, 1 - eps_low, 1 + eps_high) A) of every token, to be maximised (arXiv 1707.06347).

  Args:
    log_ratio: `[...]` log p_new - log p_old.
    advantage, eps_high: `[...]`, of the shape of `log_ratio`.
    dual_clip: c > 1 bounds the objective from below by c A where A < 0 (arXiv 1912.09729); None = off.
  """
  chex.assert_equal_shape([log_ratio, advantage, eps_high])
  ratio = jnp.exp(log_ratio)
  value = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - eps_low, 1 + eps_high) * advantage)
  if dual_clip is None:
    return value
  return jnp.where(advantage < 0, jnp.maximum(value, dual_clip * advantage), value)


def k3(log_ratio: Array) -> Array:
  """Estimate of KL(p || q) at a sample of p, never negative; `log_ratio` = log q - log p. `[...] -> [...]`.

  Source: Schulman, http://joschu.net/blog/kl-approx.html.
  """
  return jnp.expm1(log_ratio) - log_ratio


def clip_active(log_ratio: Array, advantage: Array, eps_low: float, eps_high: Array) -> tuple[Array, Array]:
  """Where the lower and the upper clip hold a token's gradient back. `[...] -> ([...] bool, [...] bool)`."""
  ratio = jnp.exp(log_ratio)
  return (advantage < 0) & (ratio < 1 - eps_low), (advantage > 0) & (ratio > 1 + eps_high)
