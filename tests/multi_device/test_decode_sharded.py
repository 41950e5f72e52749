"""A token step on eight devices: equal to one device's, and no layer's weights are sent for it.

Runs itself in a process with eight fake CPU devices. Sizes are all different, so that a shape tells what an array is.
"""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import pytest

from tests.multi_device.test_collectives import MESHES, collectives

B, G, S, SLOTS = 8, 2, 12, 6
RANK = 3  # of adapters: small, they travel
SHARED = ('fsdp=8', 'fsdp=4 tensor=2')  # meshes on which a weight lies in pieces
CASES = ('scanned', 'by layer', 'bfloat16', 'many rows')


@pytest.mark.parametrize('case', CASES)
def test_rows_go_to_the_weights(case):
  env = os.environ | {
      'JAX_NUM_CPU_DEVICES': '8', 'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir or '', 'PYTHONPATH': os.pathsep.join(sys.path)}
  done = subprocess.run([sys.executable, '-m', 'tests.multi_device.test_decode_sharded', case], env=env,
                        capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  assert done.stdout.split() == ['equal'] * len(SHARED)


def check(case: str) -> None:
  import jax.numpy as jnp
  import numpy as np

  from eagrl_jax import mesh as mesh_lib
  from eagrl_jax.lm import cache, forward, model
  from eagrl_jax.lm.cache import KV
  from eagrl_jax.lm.config import LMConfig, LoraConfig

  new = 16 if case == 'many rows' else 1  # tokens of each row: then the weights are the fewer numbers
  cfg = LMConfig(vocab_size=1016, d_model=144, n_layers=2 if case == 'by layer' else 10, n_heads=8, n_kv_heads=2,
                 head_dim=16, d_ff=272, qkv_bias=True, qk_norm=True,
                 compute_dtype='bfloat16' if case == 'bfloat16' else 'float32',
                 lora=LoraConfig(rank=RANK, alpha=6, targets=('q_proj', 'down_proj')) if case == 'by layer' else None)
  params = jax.tree.map(np.asarray, model.init(cfg, jax.random.key(0)))
  r = np.random.default_rng(0)
  layers = {k: r.normal(0, .1, v.shape).astype(v.dtype) if not v.any() else v for k, v in params['layers'].items()}
  params = params | {'layers': layers}
  dtype = jnp.dtype(cfg.compute_dtype)
  prompt_kv = KV(*(r.normal(size=(cfg.n_layers, B, 2, S, 16)).astype(dtype) for _ in 'kv'))
  tokens = r.integers(0, cfg.vocab_size, (B, G, new))

  def extend(params, prompt_kv, tokens):
    params = model.as_used(params, cfg)
    params = params | {'layers': cache.by_layer(params['layers'], cfg)}
    own = cache.by_layer(cache.empty(cfg, B, G, SLOTS + new), cfg)
    hidden, own = forward.extend(params, cfg, tokens, S + jnp.arange(new)[None, None],
                                 ((cache.by_layer(prompt_kv, cfg), jnp.ones((B, S), bool)),), own,
                                 jnp.tri(new, SLOTS + new, dtype=bool)[None, None], 0)
    return hidden, cache.stacked(own)

  one = jax.device_get(jax.jit(extend)(params, prompt_kv, tokens))
  for name in SHARED:
    mesh = mesh_lib.make_mesh(*MESHES[name])
    with jax.set_mesh(mesh):
      placed = jax.tree.map(jax.device_put, params, model.param_shardings(cfg, mesh))
      kv = jax.device_put(prompt_kv, mesh_lib.sharding(mesh, ('layers', 'batch', 'kv_heads', None, None)))
      run = jax.jit(extend).lower(placed, kv, mesh_lib.shard_batch(mesh, tokens)).compile()
      got = jax.device_get(run(placed, kv, mesh_lib.shard_batch(mesh, tokens)))
    limit = 0.05 if case == 'bfloat16' else 1e-5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=limit * float(np.abs(b).max())), got, one)
    gathered = [s for kind, s in collectives(run.as_text()) if kind == 'all-gather' and s[0] not in (1, B)]
    weights = [s for s in gathered if cfg.d_model in s and len(s) > 1 and RANK not in s]
    assert bool(weights) == (case == 'many rows'), weights
    print('equal')


if __name__ == '__main__':
  check(sys.argv[1])
