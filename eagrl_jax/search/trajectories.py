"""Reads complete reasoning paths out of finished searches and selects those to learn from. Host side."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from eagrl_jax.lm.tokenizer import Tokenizer
from eagrl_jax.search.steps import SearchResult
from eagrl_jax.types import ArrayLike, EagrlError


@dataclasses.dataclass(frozen=True)
class Trajectory:
  """One complete answer that a search found.

  Attributes:
    row: the patient's row in the cohort (`PromptBatch.example`).
    node: its final step in the tree.
    steps: number of steps, the final one included.
    text, tokens: the answer; the tokens end with the end token, the text without it.
    reward: of the final step. value: mean over the path's steps.
    visits: rollouts that ended here; 0 for a final step that was made but never chosen.
    prob: the stated probability.
    features: ids listed as important, in order.
    jaccard: agreement of that list with the expert's set; 0 when both are empty.
  """

  row: int
  label: int
  node: int
  steps: int
  text: str
  tokens: tuple[int, ...]
  reward: float
  value: float
  visits: int
  prob: float
  features: tuple[int, ...]
  jaccard: float

  @classmethod
  def from_json(cls, row: dict[str, Any]) -> Trajectory:
    """Of its `vars` after JSON, which has no tuples.

    Raises:
      TypeError, KeyError: other fields.
    """
    return cls(**row | {name: tuple(row[name]) for name in ('tokens', 'features')})


@dataclasses.dataclass(frozen=True)
class SelectionConfig:
  """Which trajectories are kept.

  Attributes:
    top_k: the most of one patient.
    min_reward: least reward of the final step.
    min_jaccard: least agreement with the expert.
    balance: equal numbers from both classes, by dropping the larger class's least rewarded ones.
  """

  top_k: int = 1
  min_reward: float = -0.5
  min_jaccard: float = 0.0
  balance: bool = True

  def __post_init__(self):
    if self.top_k < 1:
      raise EagrlError(f'search.top_k={self.top_k} must be at least 1')
    if not 0 <= self.min_jaccard <= 1:
      raise EagrlError(f'search.min_jaccard={self.min_jaccard} must lie in [0, 1]')


@dataclasses.dataclass(frozen=True)
class Selection:
  """The kept trajectories, best first for each patient, and how many fell for which reason."""

  kept: tuple[Trajectory, ...]
  dropped: dict[str, int]  # duplicate, low_reward, low_jaccard, beyond_top_k, class_balance
  n_patients: int  # patients with a kept trajectory

  def columns(self, feature_names: tuple[str, ...]) -> dict[str, list]:
    """One list a column, for `datasets.Dataset.from_dict` or a parquet table."""
    fields = [f.name for f in dataclasses.fields(Trajectory) if f.name not in ('tokens', 'features')]
    table = {f: [getattr(t, f) for t in self.kept] for f in fields}
    table['tokens'] = [list(t.tokens) for t in self.kept]
    table['features'] = [[feature_names[f] for f in t.features] for t in self.kept]
    return table


def read(result: SearchResult, example: ArrayLike, label: ArrayLike, expert: ArrayLike,
         tokenizer: Tokenizer) -> list[Trajectory]:
  """All root-to-terminal paths of a batch, in the order of patients and nodes.

  Args:
    result: of `steps.run`.
    example, label: `[B]`.
    expert: `[B, F]` bool, the expert's important features.
  """
  tree = {f: np.asarray(getattr(result.tree, f)) for f in ('parent', 'count', 'terminal', 'reward', 'visits')}
  tokens, length = np.asarray(result.tokens), np.asarray(result.length)
  named, prob, expert = np.asarray(result.named), np.asarray(result.prob), np.asarray(expert, bool)
  found = []
  for b in range(len(tree['count'])):
    for node in np.flatnonzero(tree['terminal'][b, :tree['count'][b]]):
      path, at = [], int(node)
      while at > 0:
        path.append(at)
        at = int(tree['parent'][b, at])
      path.reverse()
      ids = [int(t) for n in path for t in tokens[b, n, :length[b, n]]]
      text = tokenizer.decode(ids[:-1] if ids[-1] == tokenizer.eos_id else ids)
      features = tuple(int(f) for f in named[b, node] if f >= 0)
      wanted = set(np.flatnonzero(expert[b]).tolist())
      found.append(Trajectory(
          row=int(np.asarray(example)[b]), label=int(np.asarray(label)[b]), node=int(node), steps=len(path), text=text,
          tokens=tuple(ids), reward=float(tree['reward'][b, node]), value=float(tree['reward'][b, path].mean()),
          visits=int(tree['visits'][b, node]), prob=round(float(prob[b, node]), 6), features=features,
          jaccard=len(wanted & set(features)) / max(len(wanted | set(features)), 1)))
  return found


def best_first(trajectories: Iterable[Trajectory]) -> list[Trajectory]:
  """Patient by patient in the order of rows: by reward, then the path's value, then fewer steps."""
  return sorted(trajectories, key=lambda t: (t.row, -t.reward, -t.value, t.steps, t.node))


def select(trajectories: list[Trajectory], config: SelectionConfig) -> Selection:
  """Keeps the best of each patient.

  In this order: the second of two equal texts of a patient, low reward, low agreement, all
  beyond the patient's best `top_k` (`best_first`), and last the larger class's surplus: second
  choices before first ones, the least rewarded first.
  """
  dropped = dict.fromkeys(('duplicate', 'low_reward', 'low_jaccard', 'beyond_top_k', 'class_balance'), 0)
  ranked: dict[int, list[Trajectory]] = {}
  seen = set()
  for t in best_first(trajectories):
    mine = ranked.setdefault(t.row, [])
    if (t.row, t.tokens) in seen:
      dropped['duplicate'] += 1
    elif t.reward < config.min_reward:
      dropped['low_reward'] += 1
    elif t.jaccard < config.min_jaccard:
      dropped['low_jaccard'] += 1
    elif len(mine) >= config.top_k:
      dropped['beyond_top_k'] += 1
    else:
      mine.append(t)
    seen.add((t.row, t.tokens))

  kept = [(rank, t) for mine in ranked.values() for rank, t in enumerate(mine)]
  if config.balance:
    classes = [[x for x in kept if x[1].label == y] for y in (0, 1)]
    size = min(map(len, classes))
    best = [sorted(c, key=lambda x: (x[0], -x[1].reward, x[1].row))[:size] for c in classes]
    dropped['class_balance'] = len(kept) - 2 * size
    kept = sorted(best[0] + best[1], key=lambda x: (x[1].row, x[0]))
  chosen = tuple(t for _, t in kept)
  return Selection(chosen, dropped, len({t.row for t in chosen}))
