"""States, tries and texts of the token automaton while it is being built, and their arrays."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from eagrl_jax.lm.tokenizer import Tokenizer
from eagrl_jax.search import grammar as g
from eagrl_jax.types import EagrlError


@dataclasses.dataclass
class Edge:
  """Where a token leads, and the feature or probability that it completes."""

  next: int
  name: int = -1
  more: bool = False  # the list of names goes on
  prob: float = -1.0
  low: int = 0  # leaves of the name trie below this edge
  high: int = 0

  @property
  def is_leaf(self) -> bool:
    return self.name >= 0 or self.prob >= 0


@dataclasses.dataclass
class Node:
  """One state; the fields are those of `grammar.Grammar`."""

  segment: int
  kind: int = g.EDGE
  edges: dict[int, Edge] = dataclasses.field(default_factory=dict)
  text_next: int = 0
  text_end: int = 0
  space: int = -1
  space_next: int = 0
  space_end: int = 0
  budget: int = 0


class Builder:
  """Grows states from the end to the start: a piece is added after what follows it."""

  def __init__(self, tokenizer: Tokenizer, stop: np.ndarray):
    self.tokenizer, self.stop = tokenizer, stop
    self.nodes = [Node(g.FINAL)]  # DONE
    self.leaves: list[tuple[int, bool]] = []

  def encode(self, text: str) -> list[int]:
    """Ids of a forced piece.

    Raises:
      EagrlError: the tokenizer changes the text.
    """
    ids = self.tokenizer.encode(text, continues=True)
    if self.tokenizer.spelled(ids) != text:
      raise EagrlError(f'lm.checkpoint: its tokenizer does not give back {text!r}; use a byte-level tokenizer')
    return ids

  def new(self, segment: int, **fields: Any) -> int:
    """A fresh state."""
    self.nodes.append(Node(segment, **fields))
    return len(self.nodes) - 1

  def chain(self, tokens: list[int], target: int, segment: int) -> list[int]:
    """States before each token of a forced run that leads to `target`."""
    states = [self.new(segment) for _ in tokens]
    for state, token, following in zip(states, tokens, [*states[1:], target]):
      self.nodes[state].edges[token] = Edge(following)
    return states

  def insert(self, root: int, tokens: list[int], last: Edge, segment: int) -> None:
    """Adds a token sequence to a trie; its last token takes the edge `last`."""
    at = root
    for token in tokens[:-1]:
      edge = self.nodes[at].edges.get(token)
      if edge is None:
        edge = self.nodes[at].edges[token] = Edge(self.new(segment))
      elif edge.is_leaf:
        raise EagrlError('features: the tokens of one name begin those of another; rename one of them')
      at = edge.next
    if tokens[-1] in self.nodes[at].edges:
      raise EagrlError('features: two names have the same tokens; rename one of them')
    self.nodes[at].edges[tokens[-1]] = last

  def text(self, budget: int, closing: list[int], target: int, segment: int) -> int:
    """A free text of 1 to `budget` tokens and its closing tag."""
    forced = [*self.chain(closing, target, segment), target]
    text = self.new(segment, kind=g.TEXT, text_end=forced[0])
    self.nodes[text].text_next = text
    self.nodes[text].edges[closing[0]] = Edge(forced[1])
    if not self.stop[closing[0]]:
      # The tag's leading space is a token of its own, and an ordinary one: after it the text may go on or stop.
      if len(closing) < 2 or not self.stop[closing[1]]:
        raise EagrlError("lm.checkpoint: its tokenizer hides the '<' of a closing tag; use another tokenizer")
      spaced = self.new(segment, kind=g.TEXT, text_next=text, text_end=forced[0])
      self.nodes[spaced].edges[closing[1]] = Edge(forced[2])
      for state in (self.nodes[text], self.nodes[spaced]):
        state.space, state.space_next, state.space_end = closing[0], spaced, forced[1]
    return self.new(segment, kind=g.TEXT_FIRST, text_next=text, text_end=forced[0], budget=budget)

  def number_leaves(self, root: int) -> None:
    """Numbers the leaves of the name trie depth first and gives each edge its range."""
    for edge in self.nodes[root].edges.values():
      edge.low = len(self.leaves)
      if edge.is_leaf:
        self.leaves.append((edge.name, edge.more))
      else:
        self.number_leaves(edge.next)
      edge.high = len(self.leaves)

  def arrays(self) -> dict[str, np.ndarray]:
    """The state, edge and leaf columns of `Grammar`."""
    width = max(len(n.edges) for n in self.nodes)

    def edges(get, fill, dtype=np.int32):
      rows = [[get(token, edge) for token, edge in n.edges.items()] for n in self.nodes]
      return np.array([r + [fill] * (width - len(r)) for r in rows], dtype)

    columns = ('kind', 'segment', 'text_next', 'text_end', 'space', 'space_next', 'space_end', 'budget')
    return {
        **{c: np.array([getattr(n, c) for n in self.nodes], np.int32) for c in columns},
        'edge_token': edges(lambda token, _: token, -1),
        'edge_next': edges(lambda _, e: e.next, 0),
        'edge_low': edges(lambda _, e: e.low, 0),
        'edge_high': edges(lambda _, e: e.high, 0),
        'edge_name': edges(lambda _, e: e.name, -1),
        'edge_prob': edges(lambda _, e: e.prob, -1.0, np.float32),
        'leaf_name': np.array([name for name, _ in self.leaves], np.int32),
        'leaf_more': np.array([more for _, more in self.leaves]),
    }
