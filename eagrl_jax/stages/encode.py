"""Joins the renderer and the tokenizer: patients in, padded token batches out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from eagrl_jax import rng
from eagrl_jax.ehr import answers
from eagrl_jax.ehr.prompt import Prompt, PromptConfig, render
from eagrl_jax.ehr.records import Cohort, Visits
from eagrl_jax.lm.tokenizer import Tokenizer
from eagrl_jax.rl.judge import Answers
from eagrl_jax.stages import lengths
from eagrl_jax.types import EagrlError, PromptBatch, Rollout


@dataclasses.dataclass(frozen=True)
class Encoder:
  """Renders and tokenizes patients of one cohort.

  Attributes:
    vocabulary: None while there is no tokenizer yet: `values` and `prompt` do without.
    bucket: prompt lengths are padded up to a multiple of it, to bound recompilation.
    max_positions: of the policy, for a prompt and an answer of up to `max_answer` tokens; 0 = no limit.
  """

  cohort: Cohort
  visits: Visits
  vocabulary: Tokenizer | None
  config: PromptConfig
  bucket: int
  max_positions: int = 0
  max_answer: int = 0

  @property
  def tokenizer(self) -> Tokenizer:
    assert self.vocabulary is not None
    return self.vocabulary

  def values(self, row: int) -> np.ndarray:
    """Raw values of a patient's real visits. `-> [T, F]`, NaN where not measured."""
    return self.visits.values[row][self.visits.valid[row]]

  def censor(self, row: int, values: np.ndarray | None = None) -> np.ndarray | None:
    """Signs of a patient's values that are limits, see `Cohort.censor`. `-> [T, F]`, None where no patient has any.

    Of `values` that stand in for its own, those that differ are exact: the mark belongs to what was measured.
    """
    if self.visits.censor is None:
      return None
    own = self.visits.censor[row][self.visits.valid[row]]
    return own if values is None else np.where(values == self.values(row), own, 0)

  def prompt(self, row: int, order: np.ndarray | None = None, values: np.ndarray | None = None,
             censor: np.ndarray | None = None) -> Prompt:
    """The rendered record of one patient; `order` permutes its features, `values` stand in for its own.

    `censor [T, F]` are the signs of those values; without them `self.censor` has them.
    """
    c = self.cohort
    return render(c.features, self.values(row) if values is None else values,
                  self.visits.hours[row][self.visits.valid[row]], float(c.age[row]), int(c.sex[row]), setting=c.setting,
                  config=self.config, order=order, censor=self.censor(row, values) if censor is None else censor)

  def tokens(self, row: int, order: np.ndarray | None = None, values: np.ndarray | None = None,
             censor: np.ndarray | None = None) -> tuple[list[int], np.ndarray]:
    """Token ids of a prompt and, for each, the feature it renders (-1 none).

    Raises:
      EagrlError: it leaves no room for an answer, or the chat template changes its text.
    """
    prompt = self.prompt(row, order, values, censor)
    text = self.tokenizer.apply_chat(prompt.text)
    kept = prompt.text.strip()  # templates of Llama 2 and 3 trim what they are given
    shift = text.find(kept) - prompt.text.find(kept)
    if kept not in text:
      raise EagrlError('lm.checkpoint: its chat template rewrites the prompt, so feature spans are lost')
    begin = self.tokenizer.begin_ids
    ids, offsets = self.tokenizer.encode_with_offsets(text)
    ids, offsets = [*begin, *ids], [*[(0, 0)] * len(begin), *offsets]
    lengths.check(self.max_positions, len(ids), self.max_answer)
    starts = np.array([s for s, _ in offsets]) - shift
    stops = np.array([e for _, e in offsets]) - shift
    feature = np.full(len(ids), -1, np.int32)
    for f, first, last in prompt.spans:
      feature[(stops > first) & (starts < last)] = f
    return ids, feature

  def check(self, rows: np.ndarray) -> None:
    """Meets the errors of `tokens` on all these patients, where there is a limit, before anything is compiled."""
    if self.max_positions:
      for row in rows:
        self.tokens(int(row))

  def shown(self, rows: np.ndarray) -> np.ndarray:
    """Features that these patients' prompts have a line of: the budget may leave some out. `[n] -> [n, F]` bool"""
    out = np.zeros((len(rows), len(self.cohort.features)), bool)
    for here, row in zip(out, rows):
      here[[f for f, _, _ in self.prompt(int(row)).spans]] = True
    return out

  def batch(self, rows: np.ndarray, shuffle: tuple[int, str, int] | None = None,
            values: list[np.ndarray] | None = None) -> PromptBatch:
    """Left-padded batch.

    Args:
      shuffle: (seed, purpose, step) shuffles the features of each patient by them and the patient; None leaves the
        table's order.
      values: a [T, F] record for each row, to write in place of its own.
    """
    def order(row):
      if shuffle is None:
        return None
      return rng.host(*shuffle, int(row)).permutation(len(self.cohort.features))
    encoded = [self.tokens(int(r), order(r), None if values is None else values[i]) for i, r in enumerate(rows)]
    longest = max(len(ids) for ids, _ in encoded)
    return pad_prompts(encoded, rows, self.tokenizer.pad_id, -(-longest // self.bucket) * self.bucket)


def pad_prompts(encoded: Sequence[tuple[Sequence[int], np.ndarray | int]], rows: np.ndarray, pad_id: int,
                width: int) -> PromptBatch:
  """Left-padded batch of token ids and, for each token, the feature it renders (-1 none), `width` wide."""
  tokens, feature = np.full((len(rows), width), pad_id, np.int32), np.full((len(rows), width), -1, np.int32)
  valid = np.zeros((len(rows), width), bool)
  for i, (ids, spans) in enumerate(encoded):
    tokens[i, width - len(ids):], feature[i, width - len(ids):] = ids, spans
    valid[i, width - len(ids):] = True
  return PromptBatch(tokens, valid, feature, np.asarray(rows, np.int32))


def pad_answers(ids: list[list[list[int]]], pad_id: int, multiple: int = 16) -> tuple[np.ndarray, np.ndarray]:
  """`[B][G][*]` token ids -> right-padded tokens and validity `[B, G, T]`."""
  longest = max(len(a) for group in ids for a in group)
  width = -(-longest // multiple) * multiple
  tokens = np.full((len(ids), len(ids[0]), width), pad_id, np.int32)
  valid = np.zeros(tokens.shape, bool)
  for b, group in enumerate(ids):
    for g, answer in enumerate(group):
      tokens[b, g, :len(answer)] = answer
      valid[b, g, :len(answer)] = True
  return tokens, valid


@dataclasses.dataclass(frozen=True)
class Read:
  """Sampled answers as read on the host; `said.prob` is .5 where nothing was parsed."""

  said: Answers
  text: list[list[str]]  # [B][G]
  refused: np.ndarray  # [B, G] bool

  def probability(self, unparsed: float) -> np.ndarray:
    """Each patient's mean over its answers, one that is not parsed counting as `unparsed`. `-> [B]` float64

    To six digits: the same answers in another order are then the same number, and .7 is no less than .7.
    """
    prob = np.where(self.said.parsed, np.asarray(self.said.prob, np.float64), unparsed)
    return np.round(prob.mean(1), 6)


def parse_rollout(rollout: Rollout, tokenizer: Tokenizer, cohort: Cohort, max_named: int) -> Read:
  """Reads every sampled answer on the host."""
  tokens, valid = np.asarray(rollout.tokens), np.asarray(rollout.valid)
  b, g, t = tokens.shape
  prob = np.full((b, g), 0.5, np.float32)
  parsed, refused = np.zeros((b, g), bool), np.zeros((b, g), bool)
  named = np.full((b, g, max_named), -1, np.int32)
  key_mask, align_mask = np.zeros((b, g, t), bool), np.zeros((b, g, t), bool)
  texts: list[list[str]] = [[''] * g for _ in range(b)]
  for i in range(b):
    for j in range(g):
      ids = tokens[i, j][valid[i, j]]
      text, spans = tokenizer.decode_with_offsets(ids)
      texts[i][j] = text
      answer = answers.parse(text, cohort.features)
      refused[i, j] = answer.refused
      if answer.probability is not None:
        prob[i, j], parsed[i, j] = answer.probability, True
      count = min(len(answer.features), max_named)
      named[i, j, :count] = answer.features[:count]
      if answer.listed is not None:
        (starts, ends), n = spans.T, len(ids)
        # Strictly inside: with some tokenizers the closing tag's token begins with the space before it.
        key_mask[i, j, :n] = (starts >= answer.listed[0]) & (ends <= answer.listed[1]) & (ends > starts)
        align_mask[i, j, :n] = ends > answer.listed[0] - len(f'<{answers.FEATURES}>')
  return Read(Answers(prob, parsed, named, key_mask, align_mask), texts, refused)
