"""Advantages relative to the group: the G answers to one prompt are each other's baseline."""

from __future__ import annotations

import jax.numpy as jnp

from eagrl_jax.types import Array, EagrlError

KINDS = ('grpo', 'dr_grpo', 'leave_one_out')
EPS = 1e-6  # added to the standard deviation, as in GRPO


def group_advantages(rewards: Array, kind: str = 'grpo') -> Array:
  """Advantages of the answers of a group over their common mean. `[..., G] -> [..., G]`.

  Args:
    rewards: `[..., G]`.
    kind: 'grpo' (R - mean) / (std + 1e-6) with ddof 1 (arXiv 2402.03300); 'dr_grpo' R - mean (arXiv 2503.20783);
      'leave_one_out' R - mean of the others (arXiv 2402.14740).

  Raises:
    EagrlError: a group of one has no baseline, or `kind` is unknown.
  """
  group = rewards.shape[-1]
  if group < 2:
    raise EagrlError('rl.group=1: an answer needs others to be compared with; set --config.rl.group to 2 or more')
  if kind not in KINDS:
    raise EagrlError(f'rl.advantage={kind!r} is unknown; choose one of {", ".join(KINDS)}')
  centred = rewards - jnp.mean(rewards, -1, keepdims=True)
  # The rounding error of the mean, divided by 1e-6, would pass for a signal.
  centred = jnp.where(informative(rewards)[..., None], centred, 0)
  if kind == 'dr_grpo':
    return centred
  if kind == 'leave_one_out':
    return centred * (group / (group - 1))
  return centred / (jnp.std(rewards, -1, keepdims=True, ddof=1) + EPS)


def informative(rewards: Array, tolerance: float = 1e-6) -> Array:
  """Groups whose rewards differ: the ones that DAPO's dynamic sampling keeps. `[..., G] -> [...] bool`."""
  return jnp.max(rewards, -1) - jnp.min(rewards, -1) > tolerance


def overlong_penalty(length: Array, limit: int, buffer: int) -> Array:
  """Soft over-length penalty of DAPO (arXiv 2503.14476, eq. 13), to be added to the reward. `[...] -> [...]`.

  0 up to `limit - buffer` tokens, then falling linearly to -1 at `limit`; -1 beyond.

  Raises:
    EagrlError: the buffer is empty or longer than the limit.
  """
  if not 0 < buffer <= limit:
    raise EagrlError(f'rl.overlong_buffer={buffer} must lie in 1..{limit}, the longest answer')
  return -jnp.clip((length - (limit - buffer)) / buffer, 0.0, 1.0)
