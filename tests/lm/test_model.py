from __future__ import annotations

import dataclasses

import jax
import lm_reference as ref
import numpy as np

from eagrl_jax import mesh
from eagrl_jax.lm import model
from eagrl_jax.lm.config import LMConfig


def test_init_follows_the_declaration():
  cfg = dataclasses.replace(ref.CFG, qkv_bias=True, qk_norm=True, tie_embeddings=False, d_model=64, d_ff=256)
  params, spec = model.init(cfg, jax.random.key(0)), model.declare(cfg)
  jax.tree.map(lambda a, s: np.testing.assert_equal((a.shape, len(s.axes)), (s.shape, a.ndim)), params, spec)
  np.testing.assert_array_equal(params['final_norm'], 1)
  np.testing.assert_array_equal(params['layers']['bq'], 0)
  np.testing.assert_allclose(params['layers']['w_up'].std(), 1 / 8, rtol=0.05)
  assert not np.array_equal(params['layers']['wk'], params['layers']['wv'])


def test_a_weight_depends_on_its_own_name_only():
  tied = model.init(ref.CFG, jax.random.key(0))
  untied = model.init(dataclasses.replace(ref.CFG, tie_embeddings=False), jax.random.key(0))
  np.testing.assert_array_equal(tied['layers']['wo'], untied['layers']['wo'])


def test_an_axis_that_the_mesh_does_not_divide_is_replicated():
  cfg = LMConfig(vocab_size=50, d_model=24, n_layers=1, n_heads=6, n_kv_heads=3, head_dim=4, d_ff=30)
  shape = jax.sharding.AbstractMesh((1, 2, 2), mesh.AXES)
  placed = model.param_shardings(cfg, shape)
  assert tuple(placed['layers']['wq'].spec) == (None, 'fsdp', 'tensor', None)
  assert tuple(placed['layers']['wk'].spec) == (None, 'fsdp', None, None)  # 3 kv heads over 2 devices
  assert tuple(placed['embed'].spec) == ('tensor', 'fsdp')
