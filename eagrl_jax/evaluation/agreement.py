"""Does the policy look at, and name, what the expert (or the truth) finds important?

Every agreement comes with its chance value: a list of random features for the names, a permuted
salience for the attention. Without it a number says nothing (a record has few features present).
All arrays are host numpy, [N, F].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eagrl_jax import masked
from eagrl_jax.evaluation.bootstrap import mean_interval
from eagrl_jax.types import ArrayLike


def first_k(named: Sequence[Sequence[int]], k: int, n_features: int) -> np.ndarray:
  """Membership of the first K distinct features of each written list. bool [N, F]."""
  chosen = np.zeros((len(named), n_features), bool)
  for row, ids in zip(chosen, named, strict=True):
    row[list(dict.fromkeys(ids))[:k]] = True
  return chosen


def jaccard(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """|a ∩ b| / |a ∪ b| over the last axis, 0 where both are empty (ALGORITHM §3)."""
  return (a & b).sum(-1) / np.maximum((a | b).sum(-1), 1)


def jaccard_at_k(named: Sequence[Sequence[int]], salience: ArrayLike, k: int) -> np.ndarray:
  """Jaccard of the first K features written with the top K of a salience. [N]

  Args:
    named: for each patient the feature ids in the order written; empty for an unparsed answer.
    salience: [N, F], of the expert or of the truth.
  """
  important = masked.top_k(np.asarray(salience), k)
  return jaccard(first_k(named, k, important.shape[1]), important)


def random_jaccard_at_k(named: Sequence[Sequence[int]], salience: ArrayLike, present: ArrayLike, k: int,
                        seed: int = 42, draws: int = 64) -> np.ndarray:
  """Chance value of `jaccard_at_k`: lists of the same length drawn among the features of the prompt. [N]

  Args:
    present: bool [N, F], the features that the patient's prompt holds a value of.
    draws: random lists a patient, averaged. Patient i's draws depend on (seed, i) only.
  """
  important = masked.top_k(np.asarray(salience), k)
  length = first_k(named, k, important.shape[1]).sum(1)
  chance = np.zeros(len(important))
  for i, here in enumerate(np.asarray(present, bool)):
    ids = np.flatnonzero(here)
    order = np.random.default_rng([seed, i]).random((draws, len(ids))).argsort(axis=1)
    drawn = np.zeros((draws, important.shape[1]), bool)
    np.put_along_axis(drawn, ids[order[:, :length[i]]], True, axis=1)
    chance[i] = jaccard(drawn, np.broadcast_to(important[i], drawn.shape)).mean()
  return chance


def attention_kl(attention: ArrayLike, salience: ArrayLike, floor: float = 1e-6) -> np.ndarray:
  """KL(p_exp ‖ p_LM) in nats between normalised salience and attention over features. [N]

  Args:
    attention: [N, F] non-negative attention mass of the policy on each feature's tokens.
    salience: [N, F] non-negative.
    floor: smallest p_LM: a feature without any attention must not cost infinity.

  Returns:
    NaN for a patient where either row is all zero.
  """
  p_exp, p_lm = _normalise(salience), _normalise(attention)
  ratio = np.where(p_exp > 0, p_exp, 1.0) / np.where(p_exp > 0, np.maximum(p_lm, floor), 1.0)
  return (p_exp * np.log(ratio)).sum(1)


def permuted_attention_kl(attention: ArrayLike, salience: ArrayLike, present: ArrayLike,
                          seed: int = 42, draws: int = 16) -> np.ndarray:
  """Chance value of `attention_kl`: the salience permuted among the features present. [N]

  The permutation keeps the salience as peaked as it was. Patient i's draws depend on (seed, i) only.
  """
  s, here = np.asarray(salience, np.float64), np.asarray(present, bool)
  shuffled = np.repeat(s[None], draws, axis=0)
  for i in range(len(s)):
    ids = np.flatnonzero(here[i])
    order = np.random.default_rng([seed, i]).random((draws, len(ids))).argsort(axis=1)
    shuffled[:, i, ids] = s[i, ids[order]]
  return np.mean([attention_kl(attention, x) for x in shuffled], axis=0)


def named_agreement(named: Sequence[Sequence[int]], present: ArrayLike, k: int, *, expert: ArrayLike,
                    truth: ArrayLike | None = None, n: int = 1000, seed: int = 42) -> dict:
  """An arm's `jaccard_at_k` entry of metrics.json.

  Args:
    present: bool [N, F], the features that the arm was shown: others can neither be named nor count as important.

  Returns:
    {'k', 'expert', 'random'} and, where the truth is known, {'truth', 'random_truth'}: mean
    intervals of the Jaccard with that top-K set, and of its random-feature control.
  """

  def interval(values: np.ndarray) -> dict:
    return mean_interval(values, n, seed)

  expert = np.asarray(expert) * present
  result = {'k': k, 'expert': interval(jaccard_at_k(named, expert, k)),
            'random': interval(random_jaccard_at_k(named, expert, present, k, seed))}
  if truth is not None:
    truth = np.asarray(truth) * present
    result['truth'] = interval(jaccard_at_k(named, truth, k))
    result['random_truth'] = interval(random_jaccard_at_k(named, truth, present, k, seed))
  return result


def attention_agreement(attention: ArrayLike, salience: ArrayLike, present: ArrayLike,
                        n: int = 1000, seed: int = 42) -> dict:
  """An arm's `attention_kl` entry of metrics.json: a mean interval, and 'permuted', its control's.

  The salience is that of the features `present` [N, F], those that the arm was shown.
  """
  salience = np.asarray(salience) * present
  return {**mean_interval(attention_kl(attention, salience), n, seed),
          'permuted': mean_interval(permuted_attention_kl(attention, salience, present, seed), n, seed)}


def _normalise(x: ArrayLike) -> np.ndarray:
  x = np.asarray(x, np.float64)
  total = x.sum(1, keepdims=True)
  return np.where(total > 0, x / np.where(total > 0, total, 1.0), np.nan)
