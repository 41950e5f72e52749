"""The update on eight devices equals the update on one. Runs itself in a process with eight fake CPU devices."""

from __future__ import annotations

import os
import subprocess
import sys

import jax

B, G, S, T, F = 16, 2, 12, 6, 5


def test_eight_devices_equal_one():
  cache = jax.config.jax_compilation_cache_dir or ''
  env = os.environ | {
      'JAX_NUM_CPU_DEVICES': '8', 'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': cache, 'PYTHONPATH': os.pathsep.join(sys.path)}
  done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  assert done.stdout.split() == ['8x1x1', '1x8x1', '4x1x2', '1x4x2']


def check() -> None:
  import tempfile

  import jax.numpy as jnp
  import numpy as np

  from eagrl_jax import mesh as mesh_lib
  from eagrl_jax.lm.config import LMConfig
  from eagrl_jax.rl.update import RLBatch, UpdateConfig, make_update, policy_steps
  from eagrl_jax.train import state as state_lib
  from eagrl_jax.train.checkpoint import Checkpoints
  from eagrl_jax.train.optimizer import OptimizerConfig, make_optimizer
  from eagrl_jax.types import PromptBatch, Rollout

  assert jax.device_count() == 8
  lm_cfg = LMConfig(vocab_size=32, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=32)
  # A large eps: Adam's first step is else the sign of gradients that may be pure rounding.
  optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, total_steps=10, weight_decay=0.1, eps=1e-2))
  cfg = UpdateConfig(micro_batch=8, c_align=0.5)

  rng = np.random.default_rng(0)
  valid = np.arange(S)[None, :] >= S - rng.integers(6, S + 1, B)[:, None]
  answer_valid = np.arange(T)[None, None, :] < rng.integers(2, T + 1, (B, G))[..., None]
  batch = RLBatch(
      prompt=PromptBatch(
          tokens=rng.integers(0, 32, (B, S)), valid=valid, feature=rng.integers(-1, F, (B, S)), example=np.arange(B)),
      rollout=Rollout(
          tokens=rng.integers(0, 32, (B, G, T)), valid=answer_valid,
          logprobs=rng.normal(-3.5, 0.2, (B, G, T)).astype(np.float32), entropy=np.ones((B, G, T), np.float32)),
      advantage=rng.normal(size=(B, G)).astype(np.float32), eps_high=np.full((B, G), 0.3, np.float32),
      weight=np.ones(B, np.float32), salience=rng.dirichlet(np.ones(F), B).astype(np.float32), align_mask=answer_valid)

  def run(mesh):
    shardings = state_lib.state_shardings(lm_cfg, optimizer, mesh)
    state = state_lib.create(lm_cfg, optimizer, jax.random.key(0), mesh)
    update = make_update(lm_cfg, optimizer, cfg, shardings)
    with jax.set_mesh(mesh):  # as in a run: what meets the vocabulary matrix is placed by it
      state, history = policy_steps(update, state, mesh_lib.shard_batch(mesh, batch), 2, 2)
    assert update._cache_size() == 1
    jax.tree.map(lambda x, s: same_place(x.sharding, s, x.ndim), state, shardings)
    return state, history

  def same_place(got, want, ndim):
    assert got.is_equivalent_to(want, ndim), (got, want)

  devices = np.array(jax.devices())
  auto = (jax.sharding.AxisType.Auto,) * 3
  alone = jax.sharding.Mesh(devices[:1].reshape(1, 1, 1), mesh_lib.AXES, axis_types=auto)
  one, one_history = run(alone)
  assert all(jnp.isfinite(m['loss']) and m['finite'] for m in one_history)
  near = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
  for data, fsdp, tensor in ((8, 1, 1), (1, 8, 1), (4, 1, 2), (1, 4, 2)):
    mesh = mesh_lib.make_mesh(data, fsdp, tensor)
    many, many_history = run(mesh)
    jax.tree.map(near, jax.device_get((one.params, one_history)), jax.device_get((many.params, many_history)))
    for weight in (many.params['layers']['w_up'], many.params['embed']):
      assert weight.addressable_shards[0].data.size * fsdp * tensor == weight.size
    print(f'{data}x{fsdp}x{tensor}')

  # What eight devices wrote, one device reads, and the other way round.
  with tempfile.TemporaryDirectory() as folder:
    for name, state, other in (('a', many, alone), ('b', one, mesh)):
      with Checkpoints(f'{folder}/{name}') as files:
        files.save(3, state, {})
        restored, _, _ = files.restore(state_lib.abstract(lm_cfg, optimizer, other))
      jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(state))
      assert restored.params['embed'].sharding.mesh.size == other.size


if __name__ == '__main__':
  check()
