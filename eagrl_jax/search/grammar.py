"""The token automaton of one reasoning step: which tokens may follow, and what they mean.

Two sorts of state. At an *edge* state a short list of tokens is allowed: forced tags, the
choice between another sub-question and the final one, the trie of feature names, the trie
of probabilities. At a *text* state any token is, and a stop token (one with '<' or a line
break, or the end token) is replaced by the first token of the closing tag; so is any token
once the text's budget is used up. Edges are sparse, `[Q, W]`; text states need one `[V]` mask.

Built on the host by `grammar_compiler.compile_grammar`; everything here runs on the device.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct

from eagrl_jax.search.mentions import Mentions
from eagrl_jax.types import Array, ArrayLike

DONE = 0  # state
EDGE, TEXT_FIRST, TEXT = 0, 1, 2  # kind
QUESTION, ANSWER, FINAL = 0, 1, 2  # segment


@struct.dataclass
class Grammar:
  """Q states of up to W edges. `names` of the automaton's walk are allowed once each.

  A name trie's leaves are (name, ',' or closing tag) pairs in depth-first order, so that the
  leaves below an edge are the range [edge_low, edge_high).
  """

  kind: ArrayLike  # [Q] int32: EDGE, TEXT_FIRST or TEXT
  segment: ArrayLike  # [Q] int32: part of the step that the next token belongs to
  edge_token: ArrayLike  # [Q, W] int32, -1 where there is no edge
  edge_next: ArrayLike  # [Q, W] int32
  edge_low: ArrayLike  # [Q, W] int32
  edge_high: ArrayLike  # [Q, W] int32; an empty range means always allowed
  edge_name: ArrayLike  # [Q, W] int32, feature completed by this edge, -1 for none
  edge_prob: ArrayLike  # [Q, W] float32, probability completed by this edge, -1 for none
  text_next: ArrayLike  # [Q] int32, text states: after an ordinary token
  text_end: ArrayLike  # [Q] int32, the same when the budget is used up
  space: ArrayLike  # [Q] int32, the closing tag's first token where it is not itself a stop, else -1
  space_next: ArrayLike  # [Q] int32, after that token
  space_end: ArrayLike  # [Q] int32, the same when the budget is used up
  budget: ArrayLike  # [Q] int32, tokens of the text that starts here
  leaf_name: ArrayLike  # [2F] int32
  leaf_more: ArrayLike  # [2F] bool, the leaf announces another name
  start: ArrayLike  # [max_depth + 1] int32, first state of a step below a node of this depth
  stop: ArrayLike  # [V] bool
  opens: ArrayLike  # [V] bool, tokens that may open a text
  useful: ArrayLike  # [U] int32, the usefulness question
  yes: ArrayLike  # [] int32
  no: ArrayLike  # [] int32
  mentions: Mentions
  n_features: int = struct.field(pytree_node=False)
  max_features: int = struct.field(pytree_node=False)
  max_depth: int = struct.field(pytree_node=False)
  inner_tokens: int = struct.field(pytree_node=False)  # the longest step that is not final
  step_tokens: int = struct.field(pytree_node=False)  # the longest step


class State(struct.PyTreeNode):
  """Where R rows stand in the automaton, and what they have said."""

  at: Array  # [R] int32
  left: Array  # [R] int32, tokens left of the current text's budget
  names: Array  # [R, K] int32, features listed, in order, -1 padded
  prob: Array  # [R] float32, -1 until stated


@struct.dataclass
class Allowed:
  """The tokens that may follow: a text row takes any, an edge row one of its list."""

  text: Array  # [R] bool
  first: Array  # [R] bool, a text row that must take one of `Grammar.opens`
  token: Array  # [R, W] int32
  mask: Array  # [R, W] bool


def start(grammar: Grammar, depth: Array) -> State:
  """Start of a step below nodes of `depth [R]`."""
  n = depth.shape[0]
  return State(at=jnp.asarray(grammar.start)[depth], left=jnp.zeros(n, jnp.int32),
               names=jnp.full((n, grammar.max_features), -1, jnp.int32), prob=jnp.full(n, -1.0))


def _allowed_leaves(grammar: Grammar, state: State) -> Array:
  """Leaves of the name trie that a row may still complete, `[R, 2F]`."""
  features = jnp.arange(grammar.n_features, dtype=jnp.int32)
  used = jnp.any(state.names[:, :, None] == features[None, None, :], 1)  # [R, F]
  listed = jnp.sum(used, 1)
  more = (listed + 1 < grammar.max_features) & (listed + 1 < grammar.n_features)
  unused = jnp.take(~used, jnp.asarray(grammar.leaf_name), axis=1)
  return unused & (more[:, None] | ~jnp.asarray(grammar.leaf_more)[None, :])


def allowed(grammar: Grammar, state: State) -> Allowed:
  """What may follow; every unfinished row has at least one possibility."""
  leaves = _allowed_leaves(grammar, state).astype(jnp.int32)
  below = jnp.pad(jnp.cumsum(leaves, 1), ((0, 0), (1, 0)))  # [R, 2F + 1]
  low, high = jnp.asarray(grammar.edge_low)[state.at], jnp.asarray(grammar.edge_high)[state.at]
  reachable = jnp.take_along_axis(below, high, 1) > jnp.take_along_axis(below, low, 1)
  token, kind = jnp.asarray(grammar.edge_token)[state.at], jnp.asarray(grammar.kind)[state.at]
  return Allowed(text=kind != EDGE, first=kind == TEXT_FIRST, token=token,
                 mask=(token >= 0) & ((low == high) | reachable))


def step(grammar: Grammar, state: State, token: Array) -> tuple[State, Array]:
  """Takes one token a row.

  Args:
    token: `[R]` an allowed token, as sampled. Finished rows ignore it.

  Returns:
    The state, and the token to write `[R]`: the closing tag's where the sampled one stops a text.
  """
  at = state.at

  def column(name):
    return jnp.asarray(getattr(grammar, name))[at]

  def along_edge(name):
    return jnp.take_along_axis(column(name), edge[:, None], 1)[:, 0]

  kind = column('kind')
  is_text = kind != EDGE
  stops = (kind == TEXT) & jnp.asarray(grammar.stop)[token]
  by_edge = (~is_text | stops) & (at != DONE)
  edge = jnp.where(is_text, 0, jnp.argmax(column('edge_token') == token[:, None], 1))

  left = jnp.where(kind == TEXT_FIRST, column('budget'), state.left) - is_text
  spaced, spent = token == column('space'), left <= 0
  after_text = jnp.where(spaced, jnp.where(spent, column('space_end'), column('space_next')),
                         jnp.where(spent, column('text_end'), column('text_next')))
  after = jnp.where(at == DONE, DONE, jnp.where(by_edge, along_edge('edge_next'), after_text))

  name = jnp.where(by_edge, along_edge('edge_name'), -1)
  slot = jnp.where(name >= 0, jnp.sum(state.names >= 0, 1), grammar.max_features)
  names = jnp.where(jnp.arange(grammar.max_features)[None, :] == slot[:, None], name[:, None], state.names)
  prob = jnp.where(by_edge, along_edge('edge_prob'), -1)
  state = State(at=after, left=left, names=names, prob=jnp.where(prob >= 0, prob, state.prob))
  return state, jnp.where(by_edge, along_edge('edge_token'), token)
