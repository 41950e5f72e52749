"""The tree search of a policy over patients: of the search stage, and of evaluations, where the expert alone judges."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from eagrl_jax import masked
from eagrl_jax import mesh as mesh_lib
from eagrl_jax.ehr.records import Cohort
from eagrl_jax.rl import alignment, rewards
from eagrl_jax.search import steps
from eagrl_jax.search.grammar import Grammar
from eagrl_jax.search.grammar_compiler import compile_grammar
from eagrl_jax.stages import settings
from eagrl_jax.stages.context import Context
from eagrl_jax.stages.encode import Encoder
from eagrl_jax.stages.policy import Policy
from eagrl_jax.train import processes
from eagrl_jax.types import Array, ArrayLike, Params, PromptBatch


@struct.dataclass
class Question:
  """What a search is given of B patients."""

  prompt: PromptBatch
  guide: ArrayLike  # [B, F] the expert's salience of what the prompt shows
  goal: ArrayLike  # [B] what a stated probability is judged by
  top: ArrayLike  # [B, F] bool, the expert's top K of the guide


@dataclasses.dataclass(frozen=True)
class TerminalReward:
  """The joint reward of final steps; hashable, so that the search compiles once for it."""

  config: rewards.RewardConfig

  def __call__(self, prob: Array, named: Array, arguments: Params) -> Array:
    """`prob [B, C]`, `named [B, C, K]`, arguments (label `[B]`, expert's top K `[B, F]`) -> `[B, C]`."""
    label, expert = arguments
    c = prob.shape[1]
    spread = lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], c, *x.shape[1:]))
    return rewards.joint_reward(prob, prob >= 0, spread(label), named, spread(expert), self.config).total


def grammar(context: Context, policy: Policy, cohort: Cohort) -> Grammar:
  """All that a step may say of this cohort's features, in the policy's tokens."""
  made = compile_grammar(policy.tokenizer, cohort.features.names, policy.config.vocab_size,
                         settings.grammar(context.config))
  return jax.tree.map(jnp.asarray, made)


def ask(context: Context, encoder: Encoder, rows: np.ndarray, salience: np.ndarray, goal: np.ndarray) -> Question:
  """The question of patients `rows [B]`, on the host.

  Args:
    salience: `[N, F]` of the encoder's cohort. goal: `[N]`.
  """
  prompt = encoder.batch(rows)
  guide = salience[rows] * np.asarray(alignment.shown_features(prompt, salience.shape[1]))
  return Question(prompt, guide, goal[rows], masked.top_k(guide, context.config.reward.top_k))


def grow(context: Context, policy: Policy, words: Grammar, question: Question, key: Array) -> steps.SearchResult:
  """One jitted search of a tree a patient; the result is on the host."""
  config, q = context.config, mesh_lib.shard_batch(context.mesh, question)
  result = steps.run(policy.params, policy.config, words, q.prompt, q.guide, TerminalReward(settings.reward(config)),
                     (q.goal, q.top), key, settings.search(config), settings.step(config))
  return jax.device_get(processes.local(result))
