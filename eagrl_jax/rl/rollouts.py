"""Rollouts as a function of weights, prompts and a key, whoever writes them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from eagrl_jax import rng
from eagrl_jax.lm import sampler
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.forward import forward_shared
from eagrl_jax.lm.logprobs import token_logprobs
from eagrl_jax.rl.engine import Answer, Sampling
from eagrl_jax.rl.gradients import map_rows
from eagrl_jax.types import Array, Params, PromptBatch, Rollout

Generate = Callable[[Params, PromptBatch, Array], Rollout]  # the typed key decides the draws


def own(cfg: LMConfig, sampling: Sampling) -> Generate:
  """Answers by `lm.sampler`, from the weights at hand."""
  options = dataclasses.asdict(sampling)
  return lambda params, prompt, key: sampler.generate(params, cfg, prompt, key, **options)


def token_lists(prompt: PromptBatch) -> list[list[int]]:
  """Each prompt without its padding."""
  return [row[valid].tolist() for row, valid in zip(np.asarray(prompt.tokens), np.asarray(prompt.valid))]


def seeds(key: Array, prompt: PromptBatch) -> list[int]:
  """One a prompt, below 2^31; a function of the key and the patient alone."""
  bits = jax.vmap(lambda k: jax.random.bits(k, dtype=jnp.uint32))(rng.example_keys(key, jnp.asarray(prompt.example)))
  return [int(x) >> 1 for x in np.asarray(bits)]


def to_rollout(answers: Sequence[Sequence[Answer]], sampling: Sampling) -> Rollout:
  """Right-padded answers `[B, G, T]` of an engine. It gives no entropies: they are 0 until `with_entropy`."""
  shape = (len(answers), sampling.group, sampling.max_new)
  out = Rollout(np.full(shape, sampling.pad_id, np.int32), np.zeros(shape, bool), np.zeros(shape, np.float32),
                np.zeros(shape, np.float32))
  for b, group in enumerate(answers):
    for g, (ids, logprobs) in enumerate(group):
      out.tokens[b, g, :len(ids)], out.valid[b, g, :len(ids)], out.logprobs[b, g, :len(ids)] = ids, True, logprobs
  return out


def scores(params: Params, cfg: LMConfig, prompt: PromptBatch, rollout: Rollout, micro: int,
           pick: Callable[[Array, Array], Array]) -> Array:
  """`pick` of a rollout's log-probabilities and entropies `[B, G, T]` under `params`, `micro` prompts a pass."""

  def of_part(part):
    prompt, rollout = part
    out = forward_shared(params, cfg, prompt.tokens, prompt.valid, rollout.tokens, rollout.valid)
    return pick(*token_logprobs(params, cfg, out.hidden, rollout.tokens))

  return map_rows(of_part, (prompt, rollout), micro)


@functools.partial(jax.jit, static_argnames=('cfg', 'micro'))
def with_entropy(params: Params, cfg: LMConfig, prompt: PromptBatch, rollout: Rollout, micro: int) -> Rollout:
  """The rollout with the entropies at temperature 1 of `params`, by forward passes over `micro` prompts each.

  Log-probabilities stay the writer's: they are the old ones of the update's ratio, also where its weights lag behind.
  """
  entropy = scores(params, cfg, prompt, rollout, micro, lambda _, entropy: entropy)
  return dataclasses.replace(rollout, entropy=jnp.where(rollout.valid, entropy, 0))
