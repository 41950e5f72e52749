"""A splash kernel on eight devices, each with its rows and heads, in a process of its own with eight fake devices."""

from __future__ import annotations

import os
import subprocess
import sys

import jax


def test_eight_devices_equal_plain_attention():
  env = os.environ | {
      'XLA_FLAGS': '--xla_force_host_platform_device_count=8', 'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir or '', 'PYTHONPATH': os.pathsep.join(sys.path)}
  done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  assert done.stdout.split() == ['equal']


def check() -> None:
  import jax.numpy as jnp
  import numpy as np

  from eagrl_jax import mesh as mesh_lib
  from eagrl_jax.lm import flash
  from eagrl_jax.lm.config import LMConfig

  r = np.random.default_rng(0)
  q, k, v = (jnp.asarray(r.normal(size=(4, 24, heads, 64)), jnp.float32) for heads in (4, 2, 2))
  valid = jnp.arange(24)[None] >= jnp.array([0, 3, 9, 1])[:, None]
  cfg = LMConfig(vocab_size=8, d_model=8, n_layers=1, n_heads=4, n_kv_heads=2, head_dim=64, d_ff=8, attention='xla')
  want = flash.attend_prompt(q, k, v, valid, cfg)
  mesh = mesh_lib.make_mesh(2, 2, 2)
  with jax.set_mesh(mesh):
    rows, heads = mesh_lib.RULES['batch'], mesh_lib.RULES['heads']
    place = lambda x, *axes: jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)))
    arguments = (*(place(x, rows, None, heads) for x in (q, k, v)), place(valid, rows))
    got = jax.jit(lambda *x: flash._splash(*x, interpret=True))(*arguments)
    assert flash._divides(4, 2) and not flash._divides(6, 2) and not flash._divides(4, 1)
  assert got.addressable_shards[0].data.size * 8 == got.size
  keep = lambda x: np.where(np.asarray(valid)[:, :, None, None], np.asarray(x), 0)
  np.testing.assert_allclose(keep(got), keep(want), atol=1e-5)
  print('equal')


if __name__ == '__main__':
  check()
