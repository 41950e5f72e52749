"""Schedules, the norm clip and the decay mask, by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eagrl_jax.lm import model
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.train.optimizer import OptimizerConfig, decays, learning_rate, make_optimizer
from eagrl_jax.types import EagrlError


@pytest.mark.parametrize('schedule, expected', [
    ('constant', [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ('linear', [0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]),
    ('cosine', [0.5, 1.0, 1.0, 0.882843, 0.6, 0.317157, 0.2]),
])
def test_schedules(schedule, expected):
  cfg = OptimizerConfig(learning_rate=1.0, total_steps=6, warmup_steps=2, schedule=schedule, end_fraction=0.2)
  rate = learning_rate(cfg)
  np.testing.assert_allclose([rate(i) for i in range(7)], expected, atol=1e-6)


def test_only_matrices_decay():
  cfg = LMConfig(vocab_size=5, d_model=4, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=2, d_ff=6, qkv_bias=True,
                 qk_norm=True, tie_embeddings=False)
  mask = decays(model.init(cfg, jax.random.key(0)))
  kept = {name for name, value in mask['layers'].items() if not value}
  assert kept == {'attn_norm', 'mlp_norm', 'q_norm', 'k_norm', 'bq', 'bk', 'bv'}
  assert mask['embed'] and mask['lm_head'] and not mask['final_norm']


def test_one_step_by_hand():
  params = {'w': jnp.array([2.0, -4.0]), 'norm': jnp.array([1.0])}
  optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, total_steps=1, weight_decay=0.5, clip_norm=None))
  grads = {'w': jnp.array([3.0, -7.0]), 'norm': jnp.array([0.2])}
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  # Adam's first step is the sign of the gradient; decay is added before the rate.
  np.testing.assert_allclose(updates['w'], [-0.1 * (1 + 1), -0.1 * (-1 - 2)], rtol=1e-5)
  np.testing.assert_allclose(updates['norm'], [-0.1], rtol=1e-5)


def test_gradients_are_cut_before_adam():
  optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, total_steps=1, clip_norm=1.0, b1=0.9))
  params = {'w': jnp.zeros(2)}
  _, state = optimizer.update({'w': jnp.array([30.0, 40.0])}, optimizer.init(params), params)
  (mu,) = [leaf for leaf in optax.tree.get_all_with_path(state, 'mu')]
  np.testing.assert_allclose(mu[1]['w'], [0.06, 0.08], rtol=1e-5)


@pytest.mark.parametrize('bad', [
    {'schedule': 'step'}, {'learning_rate': 0.0}, {'warmup_steps': 9, 'schedule': 'cosine'}, {'warmup_steps': -1},
    {'weight_decay': -1.0}, {'clip_norm': 0.0}])
def test_bad_config(bad):
  with pytest.raises(EagrlError, match=next(iter(bad)).removesuffix('_steps') + '='):
    OptimizerConfig(**({'learning_rate': 1.0, 'total_steps': 5} | bad))
