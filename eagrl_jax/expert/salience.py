"""Which features the expert used for a patient: three sources, and their ensemble mean.

A feature that was never measured gets 0: the policy reads raw values and cannot see it.
With a mask channel, a feature's salience includes the fact that it was measured.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from eagrl_jax.expert import ensemble
from eagrl_jax.expert.concare import ConCare, ConCareConfig
from eagrl_jax.types import Array, EagrlError, ExpertBatch, Params

SOURCES = ('attention', 'grad_x_input', 'occlusion')


def member_salience(params: Params, cfg: ConCareConfig, batch: ExpertBatch, source: str,
                    channel_feature: np.ndarray | None = None, chunk: int = 64) -> np.ndarray:
  """Salience of every feature for every patient by each member.

  Args:
    params: stacked `[E, …]`.
    batch: N patients, numpy.
    source: 'attention' (final attention without the static token), 'grad_x_input' (|∂logit/∂x · x| summed
      over visits), 'occlusion' (|change of logit| when the feature is at the training mean at all visits).
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
  observed = np.any((batch.observed > 0) & batch.valid[..., None], 1) @ members > 0
  return _normalise(raw * observed)


def ensemble_salience(salience: np.ndarray) -> np.ndarray:
  """Mean over the members, rows renormalised. `[E, N, F] -> [N, F]`."""
  return _normalise(salience.mean(0))


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
