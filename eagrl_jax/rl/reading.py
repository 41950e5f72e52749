"""A policy's attention over the features of a prompt, read while it wrote answers that are already there."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.forward import forward_shared
from eagrl_jax.rl import alignment
from eagrl_jax.rl.gradients import map_rows
from eagrl_jax.rl.update import UpdateConfig, aligned_rows, attention_tap
from eagrl_jax.types import Array, ArrayLike, Params, PromptBatch, Rollout


@functools.partial(jax.jit, static_argnums=(0, 1, 2), static_argnames='micro')
def read_attention(lm: LMConfig, cfg: UpdateConfig, n_features: int, params: Params, prompt: PromptBatch,
                   rollout: Rollout, align_mask: ArrayLike, *, micro: int | None = None) -> Array:
  """p_LM over the features, `[B, G, F]`; the rows, layers and heads are those that the update aligns.

  Args:
    align_mask: `[B, G, T]` bool, answer tokens from <Important Features> on.
    micro: prompts a pass; None = all at once.
  """

  def of_part(part):
    attention, span = _tapped(lm, cfg, n_features, params, *part)
    return alignment.policy_salience(attention, span, cfg.align_layers, cfg.align_per_token)

  return map_rows(of_part, (prompt, rollout, jnp.asarray(align_mask)), micro or prompt.tokens.shape[0])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def read_layers(lm: LMConfig, cfg: UpdateConfig, n_features: int, params: Params, prompt: PromptBatch,
                rollout: Rollout, align_mask: ArrayLike) -> Array:
  """p_LM of every layer by itself, `[L, B, G, F]`; the rows and heads are those that the update aligns."""
  attention, span = _tapped(lm, cfg, n_features, params, prompt, rollout, align_mask)
  return jax.vmap(lambda layer: alignment.policy_salience(layer[None], span, (), cfg.align_per_token))(attention)


def _tapped(lm: LMConfig, cfg: UpdateConfig, n_features: int, params: Params, prompt: PromptBatch, rollout: Rollout,
            align_mask: ArrayLike) -> tuple[Array, Array]:
  """Attention masses `[L, B, G, F]`, and the number of prompt tokens of each feature `[B, F]`."""
  valid = jnp.asarray(rollout.valid)
  tap = attention_tap(lm, cfg, prompt, aligned_rows(cfg, valid, align_mask), n_features)
  out = forward_shared(params, lm, prompt.tokens, prompt.valid, rollout.tokens, valid, tap)
  assert out.attention is not None
  return out.attention, tap.indicator.sum(1)
