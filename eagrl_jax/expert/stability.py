"""How far the members of an ensemble agree on which features count."""

from __future__ import annotations

import functools
import itertools

import numpy as np
from scipy.stats import hypergeom, rankdata

from eagrl_jax import masked


def stability(salience: np.ndarray, k: int) -> dict[str, float]:
  """Agreement between members, averaged over pairs; NaN for a single member.

  Args:
    salience: [E, N, F].
  Returns:
    'jaccard': overlap of two members' top-k sets of a patient; 'chance': its expectation for random sets
    among the features that the patient has (about k/(2F−k)); 'spearman': rank correlation between
    members of the features' mean rank over patients.
  """
  sets = masked.top_k(salience, k)
  ranks = rankdata(np.stack([rankdata(s, axis=-1).mean(0) for s in salience]), axis=-1)  # [E, F]
  centred = ranks - ranks.mean(-1, keepdims=True)
  norm = np.sqrt(np.sum(centred**2, -1))
  present = np.sum(np.any(salience > 0, 0), -1)
  some = present > 0
  pairs = list(itertools.combinations(range(len(salience)), 2))
  if not pairs or not some.any():
    return {'jaccard': float('nan'), 'spearman': float('nan'), 'chance': float('nan')}
  overlap = [np.sum(sets[i] & sets[j], -1) / np.maximum(np.sum(sets[i] | sets[j], -1), 1) for i, j in pairs]
  return {
      'jaccard': float(np.mean([o[some].mean() for o in overlap])),
      'spearman': float(np.mean([centred[i] @ centred[j] / max(norm[i] * norm[j], 1e-12) for i, j in pairs])),
      'chance': float(np.mean([_chance(int(n), k) for n in present[some]])),
  }


@functools.lru_cache
def _chance(n: int, k: int) -> float:
  """Expected Jaccard index of two random k-subsets of n; the intersection is hypergeometric."""
  k = min(k, n)
  shared = np.arange(k + 1)
  return float(np.sum(hypergeom.pmf(shared, n, k, k) * shared / (2 * k - shared)))
