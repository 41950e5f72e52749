"""Writes the answer format of ALGORITHM.md §1 as a token automaton, for a tokenizer and its feature names.

Every forced piece is encoded as a whole, with the space or line break that belongs to it, so
that a written step has the tokens that the tokenizer gives its text. A name is encoded
together with what follows it (',' or the closing tag), because some tokenizers merge a
name's last bracket with a comma.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from eagrl_jax.lm.tokenizer import Tokenizer
from eagrl_jax.search import grammar as g
from eagrl_jax.search.automaton import Builder, Edge
from eagrl_jax.search.mentions import compile_mentions
from eagrl_jax.types import EagrlError

CLOSE_LIST = ' </Important Features>\n<Final answer>'
CLOSE_ANSWER = ' </Final answer>'


@dataclasses.dataclass(frozen=True)
class GrammarConfig:
  """Shape of a step.

  Attributes:
    final_question: text of the final sub-question.
    max_depth: sub-questions before the final one.
    max_features: K, names in the list of important features.
    question_tokens, answer_tokens: budgets of the free texts.
    useful_question: asked after a sub-question, answered by ' Yes' or ' No'.
  """

  final_question: str
  max_depth: int = 5
  max_features: int = 5
  question_tokens: int = 32
  answer_tokens: int = 48
  useful_question: str = '<Useful> Is this sub-question useful?'

  def __post_init__(self):
    for field, value in (('search.max_depth', self.max_depth), ('reward.top_k', self.max_features),
                         ('search.question_tokens', self.question_tokens),
                         ('search.answer_tokens', self.answer_tokens)):
      if value < 1:
        raise EagrlError(f'{field}={value} must be at least 1')
    if not self.final_question or '<' in self.final_question or '\n' in self.final_question:
      raise EagrlError("GrammarConfig.final_question must be one line of text without '<'")


def compile_grammar(tokenizer: Tokenizer, feature_names: tuple[str, ...], vocab_size: int,
                    config: GrammarConfig) -> g.Grammar:
  """The automaton of all steps, as host arrays.

  Args:
    feature_names: position = feature id.
    vocab_size: columns of the model's logits (may exceed the tokenizer's vocabulary).

  Raises:
    EagrlError: a name that a list cannot hold, or a tokenizer that is not lossless.
  """
  for name in feature_names:
    if not name.strip() or any(c in name for c in ',<\n'):
      raise EagrlError(f"features: the name {name!r} must not be empty or contain ',', '<' or a line break; rename it")
  pieces = [tokenizer.piece(i) if i < tokenizer.vocab_size else '' for i in range(vocab_size)]
  stop = _stop_mask(tokenizer, pieces)
  b = Builder(tokenizer, stop)
  names, longest = _final_step(b, tuple(feature_names), config)
  final = b.encode(f'<Final subquestion> {config.final_question} </Final subquestion>\n<Important Features>')
  longest += len(final)
  start, inner = [], 0
  for depth in range(config.max_depth + 1):
    root = b.new(g.QUESTION)
    if depth > 0:
      b.insert(root, final, Edge(names), g.QUESTION)
    if depth < config.max_depth:
      inner = max(inner, _inner_step(b, root, depth + 1, config))
    start.append(root)

  yes, no = b.encode(' Yes'), b.encode(' No')
  same = next(i for i, (x, y) in enumerate(zip(yes, no)) if x != y)
  return g.Grammar(
      **b.arrays(), start=np.array(start, np.int32), stop=stop, opens=_opening_mask(pieces, stop),
      useful=np.array([*b.encode(config.useful_question), *yes[:same]], np.int32), yes=np.array(yes[same], np.int32),
      no=np.array(no[same], np.int32), mentions=compile_mentions(tokenizer, tuple(feature_names), pieces),
      n_features=len(feature_names), max_features=config.max_features, max_depth=config.max_depth,
      inner_tokens=inner, step_tokens=max(inner, longest))


def _inner_step(b: Builder, root: int, i: int, config: GrammarConfig) -> int:
  """Adds sub-question i and its answer below the choice state `root`; returns their most tokens."""
  opening, close_question, open_answer, close_answer = forced = [b.encode(text) for text in (
      f'<Subquestion {i}>', f' </Subquestion {i}>\n', f'<Answer {i}>', f' </Answer {i}>\n')]
  answer = b.text(config.answer_tokens, close_answer, g.DONE, g.ANSWER)
  question = b.text(config.question_tokens, close_question, b.chain(open_answer, answer, g.ANSWER)[0], g.QUESTION)
  b.insert(root, opening, Edge(question), g.QUESTION)
  return sum(map(len, forced)) + config.question_tokens + config.answer_tokens


def _final_step(b: Builder, names: tuple[str, ...], config: GrammarConfig) -> tuple[int, int]:
  """The list of features, the probability 0.01 ... 0.99 and the end token: first state and most tokens."""
  ending = [*b.encode(CLOSE_ANSWER), b.tokenizer.eos_id]
  end = b.chain(ending, g.DONE, g.FINAL)[0]
  numbers = [b.encode(f' 0.{i:02d}') for i in range(1, 100)]
  number = b.new(g.FINAL)
  for i, tokens in enumerate(numbers, 1):
    b.insert(number, tokens, Edge(end, prob=i / 100), g.FINAL)

  closing = b.encode(CLOSE_LIST)
  tail = [*b.chain(closing, number, g.FINAL), number]
  root = b.new(g.FINAL)
  lengths = []
  for i, name in enumerate(names):
    more, last = b.encode(f' {name},'), b.encode(f' {name}{CLOSE_LIST}')
    shared = 0  # the closing tags' common tail is one chain for all names
    while shared < len(closing) - 1 and last[-1 - shared] == closing[-1 - shared]:
      shared += 1
    b.insert(root, more, Edge(root, name=i, more=True), g.FINAL)
    b.insert(root, last[:len(last) - shared], Edge(tail[len(closing) - shared], name=i), g.FINAL)
    lengths.append(max(len(more), len(last) - len(closing)))
  b.number_leaves(root)
  listed = sum(sorted(lengths)[-config.max_features:])
  return root, listed + len(closing) + max(map(len, numbers)) + len(ending)


def _stop_mask(tokenizer: Tokenizer, pieces: list[str]) -> np.ndarray:
  """Tokens that end a text: '<', a line break or control character inside, an end token, unknown ids."""
  stop = np.array([not p or '<' in p or any(c != ' ' and (c.isspace() or ord(c) < 32) for c in p) for p in pieces])
  stop[[*tokenizer.stop_ids, tokenizer.pad_id]] = True
  return stop


def _opening_mask(pieces: list[str], stop: np.ndarray) -> np.ndarray:
  """Tokens that begin a text: a space and the start of a word, or the bare space of a tokenizer without such."""
  spaced = np.array([p.startswith(' ') for p in pieces]) & ~stop
  worded = spaced & np.array([bool(p.strip()) for p in pieces])
  return worded if worded.any() else spaced
