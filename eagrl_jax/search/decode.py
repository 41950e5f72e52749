"""Decodes one step of C siblings of every tree against the prompt, their path and their own block."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from eagrl_jax import masked
from eagrl_jax.lm import cache
from eagrl_jax.lm.cache import KV
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.forward import extend
from eagrl_jax.lm.logprobs import decode_logits, word_logits
from eagrl_jax.lm.sampler import sample_from_logits
from eagrl_jax.search import grammar as g
from eagrl_jax.search.grammar import Grammar, State
from eagrl_jax.types import Array, EagrlError, Params


@dataclasses.dataclass(frozen=True)
class StepConfig:
  """How steps are sampled and inner steps rewarded; hashable, a jit static.

  Attributes:
    question_temperature: of the sub-question, and of the choice to ask another one.
    answer_temperature: of answers, names and the probability.
    top_p: of free text. Names, the probability and the choice are drawn from all that the grammar allows.
    alpha: weight of r0, the policy's own verdict on the sub-question, in r = alpha r0 + (1 - alpha) r1.
    salience_weight: share of the expert's salience in r1; the rest is the policy's confidence.
  """

  question_temperature: float = 1.2
  answer_temperature: float = 0.9
  top_p: float = 0.8
  alpha: float = 0.4
  salience_weight: float = 0.5

  def __post_init__(self):
    for field in ('question_temperature', 'answer_temperature'):
      if getattr(self, field) <= 0:
        raise EagrlError(f'search.{field}={getattr(self, field)} must be positive')
    if not 0 < self.top_p <= 1:
      raise EagrlError(f'search.top_p={self.top_p} must lie in (0, 1]')
    for field in ('alpha', 'salience_weight'):
      if not 0 <= getattr(self, field) <= 1:
        raise EagrlError(f'search.{field}={getattr(self, field)} must lie in [0, 1]')


@struct.dataclass
class Context:
  """What the siblings of one node see before their own step."""

  shared: tuple[tuple[Any, Array], ...]  # (KV [L, B, K, S, H], valid [B, S]): the prompt, then the path
  position: Array  # [B] int32, of the step's first token
  hidden: Array  # [B, D], the state that predicts that token


@struct.dataclass
class Step:
  """C decoded steps of each tree; entries of rows that were not alive mean nothing."""

  kv: KV  # [L, B, C, K, S, H], its first `inner_tokens` slots: a final step has no successor
  hidden: Array  # [B, C, D], the state after the last token
  tokens: Array  # [B, C, S] int32, 0 after the end
  length: Array  # [B, C] int32
  named: Array  # [B, C, K] int32, important features in order, -1 padded
  prob: Array  # [B, C] float32, -1 where the step is not a final one
  useful: Array  # [B, C] float32, P(Yes) / (P(Yes) + P(No)), asked after the sub-question
  confidence: Array  # [B, C] float32, exp(mean log p) of the answer's free tokens at temperature 1


class _Decoding(struct.PyTreeNode):
  """Loop state: R = B * C rows after `t` tokens."""

  t: Array  # []
  state: State
  own: Any  # KV [L, B, C, K, S + U, H] or `cache.by_layer`, the usefulness question's slots last
  hidden: Array  # [B, C, D]
  tokens: Array  # [R, S]
  length: Array  # [R]
  asked: Array  # [R], tokens of the sub-question and its tags
  logp: Array  # [R], sum over the answer's free tokens
  counted: Array  # [R], number of those


def choose(params: Params, cfg: LMConfig, grammar: Grammar, config: StepConfig, state: State, hidden: Array,
           u: Array) -> tuple[Array, Array]:
  """One allowed token a row and its log-probability without the grammar at temperature 1, both `[R]`.

  The logits are formed only when some row has a choice; a forced token then reports 0.
  """
  options = g.allowed(grammar, state)
  forced = jnp.take_along_axis(options.token, jnp.argmax(options.mask, 1)[:, None], 1)[:, 0]
  undecided = (options.text | (jnp.sum(options.mask, 1) > 1)) & (state.at != g.DONE)

  def draw():
    x = decode_logits(params, cfg, hidden)  # [R, V]
    asking = jnp.asarray(grammar.segment)[state.at] == g.QUESTION
    temperature = jnp.where(asking, config.question_temperature, config.answer_temperature)
    banned = options.first[:, None] & ~jnp.asarray(grammar.opens)[None, :]
    text = sample_from_logits(jnp.where(banned, -jnp.inf, x), u, temperature, config.top_p)
    scores = jnp.take_along_axis(x, jnp.maximum(options.token, 0), 1)
    mass = jnp.cumsum(masked.softmax(scores / temperature[:, None], options.mask), 1)
    edge = jnp.argmax(options.mask & (mass > (u * mass[:, -1])[:, None]), 1)
    listed = jnp.take_along_axis(options.token, edge[:, None], 1)[:, 0]
    token = jnp.where(options.text, text, jnp.where(undecided, listed, forced))
    token = jnp.maximum(token, 0)  # finished rows have no edge
    logp = jnp.take_along_axis(x, token[:, None], 1)[:, 0] - jax.nn.logsumexp(x, 1)
    return token, logp

  return lax.cond(jnp.any(undecided), draw, lambda: (jnp.maximum(forced, 0), jnp.zeros(u.shape)))


def decode_step(params: Params, cfg: LMConfig, grammar: Grammar, config: StepConfig, context: Context, depth: Array,
                alive: Array, key: Array) -> Step:
  """Samples one step below nodes of `depth [B]` for C siblings each; layers of weights and context are `by_layer`.

  Args:
    alive: `[B, C]` bool, rows whose result is used; the others cost no step of the loop.
    key: `[B]` keys; sibling c draws its token t from `uniform(key, (C, S))[c, t]`.
  """
  b, c = alive.shape
  slots, asked = grammar.step_tokens, grammar.useful.shape[0]
  u = jax.vmap(lambda k: jax.random.uniform(k, (c, slots)))(key).reshape(b * c, slots)
  rows = functools.partial(jax.lax.collapse, start_dimension=0, stop_dimension=2)
  own_slots = jnp.arange(slots + asked)
  position = context.position[:, None, None]

  def unfinished(carry):
    return (carry.t < slots) & jnp.any(carry.state.at != g.DONE)

  def advance(carry):
    t, state = carry.t, carry.state
    live = state.at != g.DONE
    segment = jnp.asarray(grammar.segment)[state.at]
    is_text = jnp.asarray(grammar.kind)[state.at] != g.EDGE
    closing = jnp.asarray(grammar.space)[state.at]
    sampled, logp = choose(params, cfg, grammar, config, state, rows(carry.hidden), u[:, t])
    state, token = g.step(grammar, state, sampled)
    token = jnp.where(live, token, 0)
    hidden, own = extend(
        params, cfg, token.reshape(b, c, 1), jnp.broadcast_to(position + t, (b, c, 1)), context.shared, carry.own,
        (own_slots <= t)[None, None, None, :], t)
    # The space that may open the closing tag is no word of the answer.
    counted = live & is_text & (segment == g.ANSWER) & ~jnp.asarray(grammar.stop)[sampled] & (sampled != closing)
    return _Decoding(
        t=t + 1, state=state, own=own, tokens=carry.tokens.at[:, t].set(token),
        hidden=jnp.where(live.reshape(b, c, 1), hidden[:, :, 0], carry.hidden), length=carry.length + live,
        asked=carry.asked + (live & (segment == g.QUESTION)), logp=carry.logp + jnp.where(counted, logp, 0),
        counted=carry.counted + counted)

  state = g.start(grammar, jnp.repeat(depth, c))
  none = jnp.zeros(b * c, jnp.int32)
  out = lax.while_loop(unfinished, advance, _Decoding(
      t=jnp.int32(0), state=state.replace(at=jnp.where(rows(alive), state.at, g.DONE)),
      own=cache.by_layer(cache.empty(cfg, b, c, slots + asked), cfg), tokens=jnp.zeros((b * c, slots), jnp.int32),
      hidden=jnp.broadcast_to(context.hidden[:, None], (b, c, context.hidden.shape[-1])), length=none, asked=none,
      logp=jnp.zeros(b * c), counted=none))

  def siblings(x):
    return x.reshape(b, c, *x.shape[1:])

  return Step(
      kv=jax.tree.map(lambda x: x[..., :grammar.inner_tokens, :], cache.stacked(out.own)), hidden=out.hidden,
      tokens=siblings(out.tokens), length=siblings(out.length), named=siblings(out.state.names),
      prob=siblings(out.state.prob),
      useful=_score_usefulness(params, cfg, grammar, context, out.own, siblings(out.asked)),
      confidence=siblings(jnp.exp(out.logp / jnp.maximum(out.counted, 1))))


def _score_usefulness(params: Params, cfg: LMConfig, grammar: Grammar, context: Context, own: Any,
                      asked: Array) -> Array:
  """P(Yes) / (P(Yes) + P(No)) after the sub-question, `[B, C]`; the question's keys are thrown away."""
  b, c = asked.shape
  n = grammar.useful.shape[0]
  slots = grammar.step_tokens
  slot, query = jnp.arange(slots + n), jnp.arange(n)
  # In: asked tokens of the step, then the question's own, causally.
  seen = (slot[None, None, None, :] < asked[:, :, None, None]) | (
      (slot[None, :] >= slots) & (slot[None, :] - slots <= query[:, None]))[None, None]
  positions = (context.position[:, None] + asked)[:, :, None] + query[None, None, :]
  tokens = jnp.broadcast_to(jnp.asarray(grammar.useful)[None, None, :], (b, c, n))
  hidden, _ = extend(params, cfg, tokens, positions, context.shared, own, seen, slots)
  x = word_logits(params, cfg, hidden[:, :, -1], jnp.stack([jnp.asarray(grammar.yes), jnp.asarray(grammar.no)]))
  return jax.nn.sigmoid(x[:, :, 0] - x[:, :, 1])
