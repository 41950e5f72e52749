"""Supervised fine-tuning: negative log-likelihood of given answers, optionally also of the prompts."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from eagrl_jax.lm import lora
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.forward import forward_shared
from eagrl_jax.lm.logprobs import token_logprobs
from eagrl_jax.rl.gradients import Stats, accumulate, guarded_step
from eagrl_jax.types import Array, ArrayLike, EagrlError, Params, PromptBatch


@dataclasses.dataclass(frozen=True)
class SupervisedConfig:
  """Prompts a micro-batch, and the weight of the next-token loss on prompt tokens (0 builds nothing of it)."""

  micro_batch: int
  prompt_loss: float = 0.0

  def __post_init__(self):
    if self.micro_batch < 1:
      raise EagrlError(f'micro_batch={self.micro_batch} must be at least 1')
    if self.prompt_loss < 0:
      raise EagrlError(f'prompt_loss={self.prompt_loss} must not be negative')


@struct.dataclass
class SupervisedBatch:
  """Prompts and the answers to imitate, usually one each (G = 1)."""

  prompt: PromptBatch
  tokens: ArrayLike  # [B, G, T] int32, right-padded
  valid: ArrayLike  # [B, G, T] bool
  loss_mask: ArrayLike  # [B, G, T] float32, weight of a token in the loss; only valid tokens count


@struct.dataclass
class Weighted:
  """A batch with the weight of every token in the mean over the whole batch."""

  batch: SupervisedBatch
  answer_weight: Array  # [B, G, T], sums to 1 or 0
  prompt_weight: Array  # [B, S-1] of prompt tokens 1 .. S-1, sums to 1 or 0


def weigh(batch: SupervisedBatch) -> Weighted:
  """Weights of a whole batch, taken before it is split into micro-batches."""
  share = lambda w: w / jnp.where(w.sum() > 0, w.sum(), 1)
  valid = jnp.asarray(batch.prompt.valid)
  return Weighted(
      batch=batch,
      answer_weight=share(jnp.asarray(batch.loss_mask, jnp.float32) * batch.valid),
      prompt_weight=share((valid[:, 1:] & valid[:, :-1]).astype(jnp.float32)),
  )


def supervised_loss(
    params: Params, part: Weighted, lm_cfg: LMConfig, cfg: SupervisedConfig
) -> tuple[Array, Stats]:
  """Mean negative log-likelihood in nats a token, as a weighted sum over a (micro-)batch."""
  prompt, batch = part.batch.prompt, part.batch
  out = forward_shared(params, lm_cfg, prompt.tokens, prompt.valid, batch.tokens, batch.valid)
  logp, _ = token_logprobs(params, lm_cfg, out.hidden, batch.tokens)
  loss = -jnp.sum(part.answer_weight * logp)
  sums = {'nll': loss}
  if cfg.prompt_loss:
    prompt_logp, _ = token_logprobs(params, lm_cfg, out.prompt_hidden[:, :-1], prompt.tokens[:, 1:])
    sums['prompt_nll'] = -jnp.sum(part.prompt_weight * prompt_logp)
    loss += cfg.prompt_loss * sums['prompt_nll']
  sums['loss'] = loss
  return loss, jax.lax.stop_gradient(Stats(sums=sums, peaks={}))


def make_sft_step(
    lm_cfg: LMConfig, optimizer: optax.GradientTransformation, cfg: SupervisedConfig, state_shardings: Any
) -> jax.stages.Wrapped:
  """Compiled `(state, batch, frozen=NOTHING) -> (state, metrics)`; the state is donated.

  Metrics, device scalars: loss, nll, prompt_nll (when it has a weight), grad_norm, finite.

  Args:
    state_shardings: as in `rl.update.make_update`.
  """

  def step(state, batch, frozen=lora.NOTHING):
    loss_fn = lambda trained, part: supervised_loss(lora.join(trained, frozen), part, lm_cfg, cfg)
    grads, stats = accumulate(loss_fn, state.params, weigh(batch), cfg.micro_batch)
    state, health = guarded_step(state, grads, stats.sums['loss'], optimizer)
    return state, stats.sums | health

  return jax.jit(step, donate_argnums=0, out_shardings=(state_shardings, None))
