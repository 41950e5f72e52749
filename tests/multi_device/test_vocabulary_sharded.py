"""Embedding and head on eight devices equal those on one. Runs itself in a process with eight fake CPU devices."""

from __future__ import annotations

import os
import subprocess
import sys

import jax

MESHES = ((8, 1, 1), (1, 8, 1), (4, 1, 2), (1, 4, 2), (2, 2, 2))


def test_eight_devices_equal_one():
  env = os.environ | {
      'JAX_NUM_CPU_DEVICES': '8', 'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir or '', 'PYTHONPATH': os.pathsep.join(sys.path)}
  done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  assert done.stdout.split() == ['placed', 'tied', 'untied', 'odd']


def check() -> None:
  import jax.numpy as jnp
  import numpy as np
  from jax.sharding import NamedSharding
  from jax.sharding import PartitionSpec as P

  from eagrl_jax import mesh as mesh_lib
  from eagrl_jax.lm import layers, logprobs, model
  from eagrl_jax.lm.config import LMConfig

  whole = mesh_lib.make_mesh(1, 4, 2)
  for axes, shape, want in (
      (('vocab', 'embed'), (32, 16), P(('tensor', 'fsdp'))),
      (('embed', 'vocab'), (16, 32), P(None, ('tensor', 'fsdp'))),
      (('vocab', 'embed'), (30, 16), P('tensor', 'fsdp')),
      (('vocab', 'embed'), (31, 16), P(None, 'fsdp')),
      (('batch', 'vocab'), (8, 32), P('data', ('tensor', 'fsdp'))),
      (('batch', 'vocab'), (8, 30), P(('data', 'fsdp'), 'tensor')),
      (('batch', 'drawn'), (8, 32), P(('data', 'fsdp'), 'tensor')),
      (('batch', 'drawn'), (3, 32), P('data', ('tensor', 'fsdp')))):
    got = NamedSharding(whole, mesh_lib.fitting(whole, axes, shape))
    assert got.is_equivalent_to(NamedSharding(whole, want), 2), (axes, got)
  with jax.set_mesh(whole):
    assert [mesh_lib.shards(('batch', 'vocab'), (8, v)) for v in (32, 30, 31)] == [8, 8, 4]
  assert mesh_lib.shards(('batch', 'vocab'), (8, 32)) == 1
  print('placed')

  logprobs.CHUNK_LOGITS, logprobs.WIDE_HEAD = 1, 2  # 64 rows a chunk and device; decode from the head's side
  r = np.random.default_rng(0)
  targets, weight = r.integers(0, 30, (8, 2, 50)), r.normal(size=(2, 8, 2, 50)).astype(np.float32)
  near = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * max(1, float(np.abs(b).max())))

  for name, vocab, tied in (('tied', 32, True), ('untied', 32, False), ('odd', 30, True)):
    cfg = LMConfig(vocab_size=vocab, d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=8, d_ff=16,
                   tie_embeddings=tied)
    params = {k: v for k, v in model.init(cfg, jax.random.key(0)).items() if k in ('embed', 'lm_head')}
    params = jax.tree.map(lambda x: np.asarray(x) * 8, params)

    def loss(params, targets, weight, cfg=cfg):
      hidden = layers.embed(params, cfg, targets) ** 2 - 1
      parts = logprobs.token_logprobs(params, cfg, hidden, targets)
      few = logprobs.decode_logits(params, cfg, jax.lax.stop_gradient(hidden[:, 0, 0]))
      two = logprobs.word_logits(params, cfg, jax.lax.stop_gradient(hidden), jnp.array([29, 3]))
      return sum((a * w).sum() for a, w in zip(parts, weight)), (*parts, few, two)

    run = lambda *x, loss=loss: jax.jit(jax.grad(loss, has_aux=True))(*x)
    one = run(params, targets, weight)
    for shape in MESHES:
      mesh = mesh_lib.make_mesh(*shape)
      with jax.set_mesh(mesh):
        where = {k: v for k, v in model.param_shardings(cfg, mesh).items() if k in params}
        rows = mesh_lib.shard_batch(mesh, targets)
        got = run(jax.tree.map(jax.device_put, params, where), rows, jnp.asarray(weight))
      jax.tree.map(near, jax.device_get(got), jax.device_get(one))
    print(name)


if __name__ == '__main__':
  check()
