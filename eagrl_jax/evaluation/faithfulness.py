"""Do the features that an answer names carry its probability? And how far does one expert agree with another?

    comprehensiveness = s (p(all) - p(without the chosen features))   high: they were needed
    sufficiency       = s (p(all) - p(the chosen features alone))     low: they are enough

after DeYoung et al. 2020 (arXiv 1911.03429), s = 1 where p(all) lies above the train prevalence, else -1: an answer
argues for the risk being higher, or lower, than anyone's. s is read off the same p(all), so chance alone makes both
positive; the random features of the same patient share that, and what counts is the difference from them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from eagrl_jax import masked
from eagrl_jax.evaluation import agreement
from eagrl_jax.evaluation.bootstrap import mean_interval

MEASURES = ('comprehensiveness', 'sufficiency')


def named_sets(named: Sequence[Sequence[int]], present: np.ndarray, k: int) -> np.ndarray:
  """The first K features that each answer names, those that the record holds. `present [n, F]` bool `-> [n, F]`."""
  return agreement.first_k(named, k, present.shape[1]) & present


def random_sets(size: np.ndarray, present: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
  """The control: `size [n]` random features among those of the record, by (seed, patient). `-> [n, F]` bool"""
  draws = np.stack([np.random.default_rng([seed, int(row)]).random(present.shape[1]) for row in rows])
  return highest(np.where(present, 1 - draws, 0), size)  # 1 - draws is above 0


def highest(score: np.ndarray, size: np.ndarray) -> np.ndarray:
  """The `size [n]` features with the highest score, those above 0. `[n, F] -> [n, F]` bool"""
  rank = np.argsort(np.argsort(-score, axis=-1, kind='stable'), axis=-1)
  return (rank < size[:, None]) & (score > 0)


def measures(everything: np.ndarray, without: np.ndarray, alone: np.ndarray, prior: float) -> dict[str, np.ndarray]:
  """Both measures of every patient; all arguments `[n]` probabilities, `prior` the train prevalence."""
  side = np.where(everything >= prior, 1.0, -1.0)
  return {'comprehensiveness': side * (everything - without), 'sufficiency': side * (everything - alone)}


def table(everything: np.ndarray, sets: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], prior: float,
          n: int) -> dict[str, dict]:
  """What metrics.json says of one arm.

  Args:
    everything: `[n]`, p(all).
    sets: name -> (chosen `[n, F]`, p without them `[n]`, p with them alone `[n]`); 'random' is the control.
    n: bootstrap resamples.

  Returns:
    {name: {'size', 'comprehensiveness', 'sufficiency', 'over_random': {measure: …}}}: intervals by patient, over the
    patients whose set is not empty; 'over_random' is the difference of the pair, absent from 'random' itself.
  """
  control = measures(everything, *sets['random'][1:], prior)
  out = {}
  for name, (chosen, without, alone) in sets.items():
    some = chosen.any(1)
    found = {key: np.where(some, value, np.nan) for key, value in measures(everything, without, alone, prior).items()}
    out[name] = {'size': mean_interval(np.where(some, chosen.sum(1), np.nan), n)}
    out[name] |= {key: mean_interval(value, n) for key, value in found.items()}
    if name != 'random':
      out[name]['over_random'] = {key: mean_interval(value - control[key], n) for key, value in found.items()}
  return out


def member_agreement(salience: np.ndarray, present: np.ndarray, k: int, n: int, seed: int = 42) -> dict | None:
  """Top-K agreement between members of the expert, by patient: the most that a policy could be asked for.

  Args:
    salience: `[E, n, F]`, one a member. present: bool `[n, F]`, measured.
    n: bootstrap resamples.

  Returns:
    {'k', 'pairs', 'jaccard': interval, 'random': interval of random lists of the same lengths}; None for one member.
  """
  tops = masked.top_k(np.asarray(salience), k)
  pairs = list(itertools.combinations(range(len(tops)), 2))
  if not pairs:
    return None
  lists = [[np.flatnonzero(row).tolist() for row in top] for top in tops]
  overlap = np.mean([agreement.jaccard(tops[i], tops[j]) for i, j in pairs], axis=0)
  chance = np.mean([agreement.random_jaccard_at_k(lists[i], salience[j], present, k, seed) for i, j in pairs], axis=0)
  return {'k': k, 'pairs': len(pairs), 'jaccard': mean_interval(overlap, n), 'random': mean_interval(chance, n)}
