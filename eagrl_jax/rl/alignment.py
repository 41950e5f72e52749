"""Aligning the policy's own attention with the expert's salience.

    p_LM(f) ~ mean over chosen layers, heads and answer tokens of the attention mass on feature f's prompt tokens
    L_align = KL(p_exp || p_LM), or Jensen-Shannon, or 1 - cosine

The masses come from `lm.forward.AttentionTap`, are differentiable, and never need the full attention map.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np

from eagrl_jax import masked, rng
from eagrl_jax.types import Array, ArrayLike, EagrlError, PromptBatch

KINDS = ('kl', 'js', 'cosine')
TINY = 1e-12  # far below any attention mass, far above float32's smallest


def feature_indicator(feature: ArrayLike, valid: ArrayLike, n_features: int) -> Array:
  """1 where a prompt token renders a feature: `feature` `[B, S]` ids, -1 none -> `[B, S, F]` float32."""
  chex.assert_equal_shape([feature, valid])
  return jax.nn.one_hot(jnp.where(valid, feature, -1), n_features)


def shown_features(prompt: PromptBatch, n_features: int) -> Array:
  """Features that a prompt renders. `-> [B, F] bool`."""
  return feature_indicator(prompt.feature, prompt.valid, n_features).any(1)


def tap_rows(mask: ArrayLike) -> Array:
  """Row weights of the attention tap: an equal share for each chosen token, 0 where none is. `[B, G, T]`."""
  mask = jnp.asarray(mask, jnp.float32)
  return mask / jnp.maximum(mask.sum(-1, keepdims=True), 1)


def tap_heads(chosen: tuple[int, ...], n_heads: int) -> Array:
  """Weights of the query heads in the tap: an equal share for each chosen one, of all where none is. `-> [N]`."""
  heads = sorted({i % n_heads for i in chosen}) or list(range(n_heads))
  return jnp.zeros(n_heads).at[jnp.asarray(heads)].set(1 / len(heads))


def policy_salience(attention: Array, span: Array, layers: tuple[int, ...] = (), per_token: bool = False) -> Array:
  """p_LM from attention masses.

  Args:
    attention: `[L, B, G, F]` mass on every feature, mean over chosen heads and answer tokens.
    span: `[B, F]` number of prompt tokens that render a feature, 0 where it is absent.
    layers: which layers to average, negative from the last; () = all.
    per_token: divide a feature's mass by its span, so that a long line is not salient by its length.

  Returns:
    `[B, G, F]`, sums to 1 over the features present; all 0 where no row was chosen.
  """
  chex.assert_rank([attention, span], [4, 2])
  if layers:
    attention = attention[jnp.asarray(layers)]
  mass = attention.mean(0)
  if per_token:
    mass = mass / jnp.maximum(span, 1)[:, None, :]
  return _normalise(jnp.where((span > 0)[:, None, :], mass, 0))


def expert_salience(salience: ArrayLike, span: Array) -> Array:
  """p_exp over the features that the prompt shows: `[B, F], [B, F] -> [B, F]`, sums to 1 or all 0."""
  chex.assert_equal_shape([salience, span])
  return _normalise(jnp.where(span > 0, salience, 0))


def _normalise(mass: Array) -> Array:
  return mass / jnp.maximum(mass.sum(-1, keepdims=True), TINY)


def alignment_weights(expert: Array, rows: ArrayLike, group_weight: Array) -> Array:
  """Weight of every answer in the mean alignment loss of a batch; they sum to 1, or to 0 when none counts.

  An answer counts when its group does, the expert finds a shown feature salient, and it has a chosen row.

  Args:
    expert: `[B, F]` from `expert_salience`.
    rows: `[B, G, T]` bool, the chosen answer tokens.
    group_weight: `[B]`.
  """
  weight = jnp.where(expert.sum(-1) > 0.5, group_weight, 0)[:, None] * jnp.asarray(rows).any(-1)
  total = weight.sum()
  return weight / jnp.where(total > 0, total, 1)


def _kl(p: Array, q: Array) -> Array:
  # In: p = 0 -> the term is 0 and passes no gradient. Out: finite wherever q lost a feature.
  return jnp.sum(jnp.where(p > 0, p * (jnp.log(jnp.maximum(p, TINY)) - jnp.log(jnp.maximum(q, TINY))), 0), -1)


def alignment_loss(expert: Array, policy: Array, kind: str = 'kl') -> Array:
  """Distance of the policy's salience from the expert's. `[..., F], [..., F] -> [...]`, 0 when equal.

  Args:
    kind: 'kl' KL(expert || policy), 'js' Jensen-Shannon in nats (at most log 2), 'cosine' 1 - cosine.
  """
  chex.assert_equal_shape([expert, policy])
  if kind == 'kl':
    return _kl(expert, policy)
  if kind == 'js':
    middle = (expert + policy) / 2
    return (_kl(expert, middle) + _kl(policy, middle)) / 2
  if kind == 'cosine':
    norms = jnp.sum(expert**2, -1) * jnp.sum(policy**2, -1)
    return 1 - jnp.sum(expert * policy, -1) / jnp.sqrt(jnp.maximum(norms, TINY))
  raise EagrlError(f'rl.align={kind!r} is unknown; choose one of {", ".join(KINDS)}')


def top_k_jaccard(expert: Array, policy: Array, k: int) -> Array:
  """Jaccard index of the two top-k sets; 0 when both are empty. `[..., F], [..., F] -> [...]`."""
  ours, theirs = masked.top_k(policy, k), masked.top_k(expert, k)
  return jnp.sum(ours & theirs, -1) / jnp.maximum(jnp.sum(ours | theirs, -1), 1)


def prevalence_control(salience: np.ndarray, train: np.ndarray, present: np.ndarray) -> np.ndarray:
  """The prevalence-order control: every patient gets the train patients' mean salience over its own features.

  Args:
    salience: `[N, F]`. train: rows of the train patients. present: `[N, F]` bool, measured.

  Returns:
    `[N, F]` float32; rows sum to 1, or to 0 where nothing is present.
  """
  mean = np.where(present, salience[train].mean(0)[None], 0)
  total = mean.sum(1, keepdims=True)
  return (mean / np.where(total > 0, total, 1)).astype(np.float32)


def random_control(key: Array, example: ArrayLike, salience: ArrayLike, present: ArrayLike) -> Array:
  """The random-feature control: each patient's salience, dealt anew among the features that the prompt shows.

  Args:
    key: of the control; the deal is f(key, example), the same at every epoch.
    example: `[B]` patient ids.
    salience: `[B, F]`.
    present: `[B, F]` bool.

  Returns:
    `[B, F]`: the same values over present features, in another order.
  """
  chex.assert_equal_shape([salience, present])

  def deal(k, values, shown):
    slot = jnp.arange(values.shape[0], dtype=jnp.float32)
    draw = jax.random.uniform(k, values.shape) - 1
    order = jnp.argsort(jnp.where(shown, slot, slot + values.shape[0]))
    shuffled = jnp.argsort(jnp.where(shown, draw, slot))
    return jnp.zeros_like(values).at[order].set(values[shuffled])

  return jax.vmap(deal)(rng.example_keys(key, example), salience, present)
