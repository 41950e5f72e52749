"""Which features the expert used for a patient: three sources, their ensemble mean and their stability.

A feature that was never measured gets 0: the policy reads raw values and cannot see it.
With a mask channel, a feature's salience includes the fact that it was measured.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import hypergeom, rankdata

from eagrl_jax import masked
from eagrl_jax.expert import ensemble
from eagrl_jax.expert.concare import ConCare, ConCareConfig
from eagrl_jax.types import Array, EagrlError, ExpertBatch, Params

SOURCES = ('attention', 'grad_x_input', 'occlusion')


def member_salience(params: Params, cfg: ConCareConfig, batch: ExpertBatch, source: str,
                    observed: np.ndarray | None = None, channel_feature: np.ndarray | None = None,
                    chunk: int = 64) -> np.ndarray:
  """Salience of every feature for every patient by each member.

  Args:
    params: stacked `[E, …]`.
    batch: N patients, numpy.
    source: 'attention' (final attention without the static token), 'grad_x_input' (|∂logit/∂x · x| summed
      over visits), 'occlusion' (|change of logit| when the feature is at the training mean at all visits).
    observed: [N, F] bool, measured at least once; None reads it from `batch.observed`.
    channel_feature: [channels] feature id of each input channel, for one-hot features; None is the identity.
    chunk: patients at once.
  Returns:
    [E, N, F] float32; rows sum to 1, or are 0 where nothing was measured.
  """
  if source not in SOURCES:
    raise EagrlError(f'expert.salience: {source!r} is unknown; choose one of {SOURCES}')
  channels = batch.values.shape[-1]
  owner = np.arange(channels) if channel_feature is None else np.asarray(channel_feature)
  members = np.eye(int(owner.max()) + 1, dtype=np.float32)[owner]  # [channels, F] indicator
  raw = ensemble.map_chunks(lambda b: _raw(params, cfg, b, jnp.asarray(members), source), batch, chunk)
  if observed is None:
    observed = np.any((batch.observed > 0) & batch.valid[..., None], 1) @ members > 0
  return _normalise(raw * observed)


def ensemble_salience(salience: np.ndarray) -> np.ndarray:
  """Mean over the members, rows renormalised. `[E, N, F] -> [N, F]`."""
  return _normalise(salience.mean(0))


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


def _normalise(x: np.ndarray) -> np.ndarray:
  total = x.sum(-1, keepdims=True)
  return np.where(total > 0, x / np.where(total > 0, total, 1), 0).astype(np.float32)


@functools.partial(jax.jit, static_argnames=('cfg', 'source'))
def _raw(params: Params, cfg: ConCareConfig, batch: ExpertBatch, members: Array, source: str) -> Array:
  """Unnormalised salience [E, B, F]; `members` [channels, F] tells whose channel is whose."""
  one = {'attention': _attention, 'grad_x_input': _grad_x_input, 'occlusion': _occlusion}[source]
  return jax.vmap(lambda p: one(p, cfg, batch, members))(params)


def _attention(params: Params, cfg: ConCareConfig, batch: ExpertBatch, members: Array) -> Array:
  return ensemble.member_logits(params, cfg, batch)[1][:, :-1] @ members


def _grad_x_input(params: Params, cfg: ConCareConfig, batch: ExpertBatch, members: Array) -> Array:
  def total(values, observed):
    changed = dataclasses.replace(batch, values=values, observed=observed)
    return jnp.sum(ensemble.member_logits(params, cfg, changed)[0])

  by_value, by_mask = jax.grad(total, argnums=(0, 1))(batch.values, batch.observed)
  product = jnp.abs(by_value * batch.values) + jnp.abs(by_mask * batch.observed)
  return jnp.sum(product * batch.valid[..., None], 1) @ members


def _occlusion(params: Params, cfg: ConCareConfig, batch: ExpertBatch, members: Array) -> Array:
  """A feature reaches the rest through its own tokens only: swap those, re-run the read-out, not the GRUs."""
  model = ensemble.expert(cfg, batch)
  encode = lambda b: ensemble.apply(model, params, b, method=ConCare.encode)
  logit = lambda tokens: ensemble.apply(model, params, tokens, batch.static, method=ConCare.readout)[0]
  tokens = encode(batch)
  absent = encode(dataclasses.replace(batch, values=jnp.zeros_like(batch.values),
                                      observed=jnp.zeros_like(batch.observed)))
  without = lambda owned: logit(jnp.where(owned[None, :, None] > 0, absent, tokens))
  changed = jax.lax.map(without, members.T, batch_size=8)  # [F, B]
  return jnp.abs(changed - logit(tokens)[None]).T
