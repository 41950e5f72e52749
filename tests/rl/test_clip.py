"""The adaptive upper clip: golden values, fallbacks, and the constants it contains."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagrl_jax.rl import clip
from eagrl_jax.rl.clip import ClipConfig, adaptive_upper_clip
from eagrl_jax.types import EagrlError

GOLDEN = jnp.array([[0.20, 0.50, 0.35, 0.80]])


def test_golden():
  np.testing.assert_allclose(adaptive_upper_clip(GOLDEN, ClipConfig()), [[0.20, 0.30, 0.25, 0.40]], atol=1e-6)


def test_scope():
  entropy = jnp.array([[0.0, 1.0], [2.0, 4.0]])
  group = adaptive_upper_clip(entropy, ClipConfig())
  np.testing.assert_allclose(group, [[0.2, 0.4], [0.2, 0.4]], atol=1e-6)
  batch = adaptive_upper_clip(entropy, ClipConfig(scope='batch'))
  np.testing.assert_allclose(batch, [[0.2, 0.25], [0.3, 0.4]], atol=1e-6)


def test_equal_entropies_give_the_minimum():
  np.testing.assert_allclose(adaptive_upper_clip(jnp.full((2, 4), 0.3), ClipConfig()), np.full((2, 4), 0.2))


@pytest.mark.parametrize('constant', [0.28, 0.2])
def test_equal_bounds_are_dapo_and_grpo(constant):
  got = adaptive_upper_clip(GOLDEN, ClipConfig(constant, constant))
  np.testing.assert_allclose(got, np.full((1, 4), constant), rtol=1e-6)


def test_no_gradient_passes():
  grad = jax.grad(lambda h: adaptive_upper_clip(h, ClipConfig()).sum())(GOLDEN)
  np.testing.assert_array_equal(grad, np.zeros((1, 4)))


def test_key_entropy_and_its_fallback():
  entropy = jnp.array([[1.0, 2.0, 3.0, 9.0], [1.0, 2.0, 6.0, jnp.nan]])
  valid = jnp.array([[True] * 4, [True, True, True, False]])
  key = jnp.array([[False, True, True, False], [False, False, False, True]])
  # Row 0: its two key tokens. Row 1: the only key token is padding, so the mean over the answer.
  np.testing.assert_allclose(clip.key_entropy(entropy, valid, key), [2.5, 3.0], rtol=1e-6)


def test_bad_config():
  with pytest.raises(EagrlError, match='rl.clip_over'):
    ClipConfig(scope='world')
  with pytest.raises(EagrlError, match='rl.clip_min'):
    ClipConfig(high_min=0.5, high_max=0.4)
