"""The tree search over reasoning steps of a language model, one jitted function for a batch of patients.

Each node keeps the keys and values of its own step. Expanding a node gathers its ancestors'
blocks once; its C candidates then share the prompt's and the path's keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from eagrl_jax.lm import cache, model
from eagrl_jax.lm.cache import KV
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.forward import prefill
from eagrl_jax.search import mcts, mentions
from eagrl_jax.search.decode import Context, StepConfig, decode_step
from eagrl_jax.search.grammar import Grammar
from eagrl_jax.search.mcts import Expand, Expansion, SearchConfig
from eagrl_jax.search.tree import Tree
from eagrl_jax.types import Array, EagrlError, Params, PromptBatch

# (prob [B, C], named ids [B, C, K] with -1 padding, the terminal arguments) -> reward [B, C]
TerminalReward = Callable[[Array, Array, Params], Array]


@struct.dataclass
class NodeSteps:
  """The payload of the search: what every node keeps of its step."""

  kv: KV  # [B, M, L, K, S, H], S = grammar.inner_tokens
  hidden: Array  # [B, M, D], the state after the step's last token
  tokens: Array  # [B, M, S] int32
  length: Array  # [B, M] int32
  mentioned: Array  # [B, M, F] bool, features whose name the step's text contains
  named: Array  # [B, M, K] int32, important features of a final step, -1 padded
  prob: Array  # [B, M] float32, -1 where not final
  useful: Array  # [B, M] float32
  confidence: Array  # [B, M] float32


@struct.dataclass
class SearchResult:
  """A finished search without its keys and values; slots from `tree.count` on are empty."""

  tree: Tree
  tokens: Array  # [B, M, S] int32
  length: Array  # [B, M] int32
  mentioned: Array  # [B, M, F] bool
  named: Array  # [B, M, K] int32, -1 padded
  prob: Array  # [B, M] float32, -1 where not final
  useful: Array  # [B, M] float32, r0 of inner steps
  confidence: Array  # [B, M] float32


def make_expand(params: Params, cfg: LMConfig, grammar: Grammar, prompt_kv: KV, prompt_valid: Array, salience: Array,
                terminal_reward: TerminalReward, terminal_args: Params, n_candidates: int,
                config: StepConfig) -> Expand:
  """An `expand` for `mcts.search` that decodes steps.

  Args:
    prompt_kv: `[L, B, K, S, H]`. prompt_valid: `[B, S]`.
    salience: `[B, F]` the expert's, rows sum to 1 or 0.
  """
  prompt_length = jnp.sum(prompt_valid, 1, dtype=jnp.int32)
  layers, prompt = cache.by_layer(params['layers'], cfg), (cache.by_layer(prompt_kv, cfg), prompt_valid)
  decoded_with = params | {'layers': layers}

  def expand(payload, node, depth, path, active, key):
    at = jnp.maximum(path, 0)  # [B, P]; depth, not the index, says which entries are real
    real = path >= 0
    length = jnp.where(real, _rows(payload.length, at), 0)
    valid = jnp.arange(grammar.inner_tokens)[None, None, :] < length[:, :, None]
    walked = cache.by_layer(jax.tree.map(lambda x: _as_segment(_rows(x, at)), payload.kv), cfg)
    context = Context(
        shared=(prompt, (walked, valid.reshape(valid.shape[0], -1))),
        position=prompt_length + jnp.sum(length, 1), hidden=_rows(payload.hidden, node[:, None])[:, 0])
    first = (jnp.arange(n_candidates) == 0)[None, :]
    alive = active[:, None] & (first | (depth < grammar.max_depth)[:, None])
    step = decode_step(decoded_with, cfg, grammar, config, context, depth, alive, key)

    shape = step.length.shape
    mentioned = mentions.find(grammar.mentions, step.tokens.reshape(-1, grammar.step_tokens), step.length.reshape(-1))
    mentioned = mentioned.reshape(*shape, -1)
    terminal = step.prob >= 0
    reward = jnp.where(terminal, terminal_reward(step.prob, step.named, terminal_args),
                       inner_reward(step.useful, step.confidence, mentioned, salience[:, None, :], config))
    kv = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2), step.kv)
    return Expansion(reward, terminal, alive, NodeSteps(
        kv=kv, hidden=step.hidden, tokens=step.tokens, length=step.length, mentioned=mentioned, named=step.named,
        prob=step.prob, useful=step.useful, confidence=step.confidence))

  return expand


def inner_reward(useful: Array, confidence: Array, mentioned: Array, salience: Array, config: StepConfig) -> Array:
  """r = alpha r0 + (1 - alpha) r1, r1 = the mentioned features' salience mixed with the policy's confidence.

  Args:
    useful, confidence: `[...]` in [0, 1].
    mentioned: `[..., F]` bool. salience: broadcastable to it.
  """
  r1 = config.salience_weight * jnp.sum(mentioned * salience, -1) + (1 - config.salience_weight) * confidence
  return config.alpha * useful + (1 - config.alpha) * r1


def grow(params: Params, cfg: LMConfig, grammar: Grammar, prompt: PromptBatch, salience: Array,
         terminal_reward: TerminalReward, terminal_args: Params, key: Array, config: SearchConfig,
         step_config: StepConfig) -> tuple[Tree, NodeSteps]:
  """The search with everything that its nodes keep; call it under jit."""
  if config.max_depth != grammar.max_depth:
    raise EagrlError(
        f'search.max_depth={config.max_depth}: the grammar was compiled for {grammar.max_depth}; use one value')
  tokens, valid, example = map(jnp.asarray, (prompt.tokens, prompt.valid, prompt.example))
  params = model.as_used(params, cfg)
  hidden, kv = prefill(params, cfg, tokens, valid)
  b, slots = tokens.shape[0], grammar.step_tokens
  block = jnp.zeros((b, cfg.n_layers, cfg.n_kv_heads, grammar.inner_tokens, cfg.head_dim), kv.k.dtype)
  zero = jnp.zeros(b)
  root = NodeSteps(
      kv=KV(block, block), hidden=hidden, tokens=jnp.zeros((b, slots), jnp.int32), length=jnp.zeros(b, jnp.int32),
      mentioned=jnp.zeros((b, grammar.n_features), bool), named=jnp.full((b, grammar.max_features), -1, jnp.int32),
      prob=zero - 1, useful=zero, confidence=zero)
  expand = make_expand(params, cfg, grammar, kv, valid, salience, terminal_reward, terminal_args,
                       config.n_candidates, step_config)
  return mcts.search(key, example, root, expand, config)


@functools.partial(jax.jit, static_argnames=('cfg', 'terminal_reward', 'config', 'step_config'))
def run(params: Params, cfg: LMConfig, grammar: Grammar, prompt: PromptBatch, salience: Array,
        terminal_reward: TerminalReward, terminal_args: Params, key: Array, config: SearchConfig,
        step_config: StepConfig) -> SearchResult:
  """Searches the reasoning of B patients; one compile a prompt shape.

  Args:
    prompt: left-padded; `example` gives each patient's random keys.
    salience: `[B, F]` the expert's, rows sum to 1 or 0.
    terminal_reward: static; pass the same function object each time.
    terminal_args: pytree handed to it, e.g. labels and the expert's feature sets.
    key: typed key.

  Raises:
    EagrlError: `config.max_depth` differs from the grammar's.
  """
  tree, nodes = grow(params, cfg, grammar, prompt, salience, terminal_reward, terminal_args, key, config, step_config)
  return SearchResult(tree=tree, tokens=nodes.tokens, length=nodes.length, mentioned=nodes.mentioned,
                      named=nodes.named, prob=nodes.prob, useful=nodes.useful, confidence=nodes.confidence)


def _rows(column: Array, index: Array) -> Array:
  """`column [B, M, ...]` at `index [B, P]` -> `[B, P, ...]`."""
  return jax.vmap(lambda x, i: x[i])(column, index)


def _as_segment(blocks: Array) -> Array:
  """The path's blocks `[B, P, L, K, S, H]` as one segment `[L, B, K, P * S, H]`."""
  b, p, l, k, s, h = blocks.shape
  return blocks.transpose(2, 0, 3, 1, 4, 5).reshape(l, b, k, p * s, h)
