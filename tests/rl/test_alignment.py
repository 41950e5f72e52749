"""Salience of the policy, its distance from the expert's, and the random-feature control."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import distance
from scipy.stats import entropy as scipy_kl

from eagrl_jax import rng as rng_lib
from eagrl_jax.rl import alignment
from eagrl_jax.types import EagrlError, PromptBatch

RNG = np.random.default_rng(0)
P = RNG.dirichlet(np.ones(6), size=(2, 3)).astype(np.float32)
Q = RNG.dirichlet(np.ones(6), size=(2, 3)).astype(np.float32)


@pytest.mark.parametrize('layers, chosen', [((), [0, 1, 2]), ((0, -1), [0, 2])])
@pytest.mark.parametrize('per_token', [False, True])
def test_policy_salience_against_loops(layers, chosen, per_token):
  attention = RNG.random((3, 2, 2, 4)).astype(np.float32)
  span = np.array([[2, 0, 5, 1], [1, 1, 1, 1]], np.float32)
  got = alignment.policy_salience(jnp.array(attention), jnp.array(span), layers, per_token)
  for b in range(2):
    for g in range(2):
      mass = [np.mean([attention[i, b, g, f] for i in chosen]) if span[b, f] else 0.0 for f in range(4)]
      if per_token:
        mass = [m / s if s else 0.0 for m, s in zip(mass, span[b])]
      np.testing.assert_allclose(got[b, g], np.array(mass) / sum(mass), rtol=1e-5)


def test_absent_features_get_no_mass_on_either_side():
  salience, span = jnp.array([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]]), jnp.array([[3.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
  got = alignment.expert_salience(salience, span)
  np.testing.assert_allclose(got, [[5 / 7, 0, 2 / 7], [0, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize('kind', alignment.KINDS)
def test_losses_against_scipy(kind):
  oracle = {
      'kl': lambda p, q: scipy_kl(p, q),
      'js': lambda p, q: distance.jensenshannon(p, q) ** 2,
      'cosine': distance.cosine,
  }[kind]
  got = alignment.alignment_loss(jnp.array(P), jnp.array(Q), kind)
  want = [[oracle(P[i, j], Q[i, j]) for j in range(3)] for i in range(2)]
  np.testing.assert_allclose(got, want, rtol=1e-4)
  np.testing.assert_allclose(alignment.alignment_loss(jnp.array(P), jnp.array(P), kind), np.zeros((2, 3)), atol=1e-6)


@pytest.mark.parametrize('kind', alignment.KINDS)
def test_gradient_reaches_the_attention_and_is_finite(kind):
  attention = jnp.array([[[[0.3, 0.0, 0.1]]]])  # the second feature holds no attention at all
  expert = jnp.array([[[0.2, 0.5, 0.3]]])

  def loss(a):
    return alignment.alignment_loss(expert, alignment.policy_salience(a, jnp.ones((1, 3))), kind).sum()

  grad = jax.grad(loss)(attention)
  assert jnp.isfinite(grad).all() and jnp.abs(grad).max() > 0.1
  assert loss(attention - 1e-3 * grad) < loss(attention)


def test_kl_gradient_by_hand():
  # d/dm_f KL(p || m / sum m) = 1 / sum m - p_f / m_f
  mass, expert = jnp.array([0.2, 0.1, 0.1]), jnp.array([0.5, 0.25, 0.25])
  loss = lambda m: alignment.alignment_loss(
      expert[None, None], alignment.policy_salience(m[None, None, None], jnp.ones((1, 3)))).sum()
  np.testing.assert_allclose(jax.grad(loss)(mass), np.full(3, 0.0), atol=1e-5)
  skewed = jnp.array([0.1, 0.2, 0.1])
  np.testing.assert_allclose(jax.grad(loss)(skewed), [2.5 - 5, 2.5 - 1.25, 0], atol=1e-5)


def test_weights_of_answers():
  expert = jnp.array([[0.5, 0.5], [0.0, 0.0], [1.0, 0.0]])
  rows = jnp.array([[[True, False], [False, False]], [[True, True]] * 2, [[True, True]] * 2])
  got = alignment.alignment_weights(expert, rows, jnp.ones(3))
  np.testing.assert_allclose(got, np.array([[1, 0], [0, 0], [1, 1]]) / 3, rtol=1e-6)
  assert not alignment.alignment_weights(expert, rows, jnp.zeros(3)).any()


def test_tap_rows():
  got = alignment.tap_rows(np.array([[[True, True, False], [False, False, False]]]))
  np.testing.assert_allclose(got, [[[0.5, 0.5, 0], [0, 0, 0]]])


def test_feature_indicator():
  got = alignment.feature_indicator(jnp.array([[2, 0, -1, 1]]), jnp.array([[False, True, True, True]]), 3)
  np.testing.assert_array_equal(got, [[[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]]])


def test_shown_features():
  feature, valid = np.array([[2, 0, 0, -1], [-1, 1, 2, 2]]), np.array([[False, True, True, True], [True] * 4])
  got = alignment.shown_features(PromptBatch(feature, valid, feature, np.arange(2)), 3)
  np.testing.assert_array_equal(got, [[True, False, False], [False, True, True]])


def test_top_k_jaccard():
  expert, policy = jnp.array([[0.4, 0.3, 0.2, 0.1]] * 2), jnp.array([[0.4, 0.1, 0.3, 0.2], [0.0, 0.0, 0.0, 0.0]])
  np.testing.assert_allclose(alignment.top_k_jaccard(expert, policy, 2), [1 / 3, 0], rtol=1e-6)
  np.testing.assert_allclose(alignment.top_k_jaccard(expert, policy, 9), [1, 0])


def test_random_control():
  key = rng_lib.stage_key(0, 'control')
  example, salience = np.arange(40, 80), RNG.dirichlet(np.ones(12), size=40).astype(np.float32)
  present = RNG.random((40, 12)) < 0.7
  got = np.asarray(alignment.random_control(key, example, salience, present))
  for row, before, shown in zip(got, salience, present):
    np.testing.assert_array_equal(np.sort(row[shown]), np.sort(before[shown]))
    np.testing.assert_array_equal(row[~shown], before[~shown])
  assert (got != salience).any(-1).all()
  # A patient's deal depends on the patient alone, not on batch or order.
  back = alignment.random_control(key, example[::-1], salience[::-1], present[::-1])
  np.testing.assert_array_equal(back, got[::-1])
  # Every place is reached about equally often.
  many = alignment.random_control(key, np.arange(3000), np.tile([[1.0, 0, 0, 0]], (3000, 1)), np.ones((3000, 4), bool))
  np.testing.assert_allclose(np.asarray(many).mean(0), np.full(4, 0.25), atol=0.03)


def test_unknown_kind():
  with pytest.raises(EagrlError, match='rl.align'):
    alignment.alignment_loss(jnp.array(P), jnp.array(Q), 'tv')
