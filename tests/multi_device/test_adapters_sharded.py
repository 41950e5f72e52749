"""Checkpoints streamed onto eight devices, and adapters trained there as on one. Runs in a process of its own."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import jax

LM_TESTS = pathlib.Path(__file__).parents[1] / 'lm'
B, G, S, T, F = 8, 2, 12, 6, 5


def test_eight_devices_load_and_train_as_one():
  env = os.environ | {
      'JAX_NUM_CPU_DEVICES': '8', 'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir or '',
      'PYTHONPATH': os.pathsep.join([str(LM_TESTS), *sys.path])}
  done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  assert done.stdout.split() == ['loaded', 'trained']


def check() -> None:
  import dataclasses
  import tempfile

  import numpy as np
  from test_checkpoints import write_gguf

  from eagrl_jax import mesh as mesh_lib
  from eagrl_jax.lm import gguf_io, hf_io, lora, model
  from eagrl_jax.lm.config import LORA_TARGETS, LMConfig, LoraConfig
  from eagrl_jax.lm.tokenizer import train_tokenizer
  from eagrl_jax.rl.update import RLBatch, UpdateConfig, make_update
  from eagrl_jax.train import state as state_lib
  from eagrl_jax.train.optimizer import OptimizerConfig, make_optimizer
  from eagrl_jax.types import PromptBatch, Rollout

  plain = LMConfig(vocab_size=304, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=32, qkv_bias=True,
                   tie_embeddings=False)
  rng = np.random.default_rng(0)
  weights = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32) * 0.3, model.declare(plain))
  mesh = mesh_lib.make_mesh(2, 2, 2)
  alone = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), mesh_lib.AXES,
                            axis_types=(jax.sharding.AxisType.Auto,) * 3)
  with tempfile.TemporaryDirectory() as folder:
    hf_io.save_hf(folder, weights, plain, train_tokenizer(['a lactate of 3.8'], ['lactate'], 300), shard_bytes=20_000)
    write_gguf(f'{folder}/m.gguf', plain, weights)
    loaded = hf_io.load_hf(folder, mesh=mesh)[0], gguf_io.load_gguf(f'{folder}/m.gguf', mesh=mesh)[0]
  for placed in loaded:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(placed), weights)
    for x, where in zip(jax.tree.leaves(placed), jax.tree.leaves(model.param_shardings(plain, mesh)), strict=True):
      assert x.sharding.is_equivalent_to(where, x.ndim)
    assert placed['layers']['w_up'].addressable_shards[0].data.size * 4 == placed['layers']['w_up'].size
  print('loaded')

  cfg = dataclasses.replace(plain, lora=LoraConfig(2, 4.0, tuple(LORA_TARGETS)))
  fresh, _ = lora.split(model.init(cfg, jax.random.key(1)), cfg)
  fresh = jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), fresh)
  valid = np.arange(S)[None, :] >= S - rng.integers(6, S + 1, B)[:, None]
  answer_valid = np.arange(T)[None, None, :] < rng.integers(2, T + 1, (B, G))[..., None]
  batch = RLBatch(
      prompt=PromptBatch(
          tokens=rng.integers(0, 300, (B, S)), valid=valid, feature=rng.integers(-1, F, (B, S)), example=np.arange(B)),
      rollout=Rollout(
          tokens=rng.integers(0, 300, (B, G, T)), valid=answer_valid,
          logprobs=rng.normal(-5.5, 0.2, (B, G, T)).astype(np.float32), entropy=np.ones((B, G, T), np.float32)),
      advantage=rng.normal(size=(B, G)).astype(np.float32), eps_high=np.full((B, G), 0.3, np.float32),
      weight=np.ones(B, np.float32), salience=rng.dirichlet(np.ones(F), B).astype(np.float32), align_mask=answer_valid)
  # A large eps: Adam's first step is else the sign of gradients that may be pure rounding.
  optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, total_steps=10, eps=1e-2))

  def run(on):
    where = model.param_shardings(cfg, on)
    params = jax.tree.map(jax.device_put, lora.join(fresh, weights), where)
    shardings = state_lib.state_shardings(cfg, optimizer, on)
    state = state_lib.from_params(params, cfg, optimizer, on)
    update = make_update(cfg, optimizer, UpdateConfig(micro_batch=4, c_align=0.5), shardings)
    _, frozen = lora.split(params, cfg)
    part = mesh_lib.shard_batch(on, batch)
    with jax.set_mesh(on):
      for _ in range(2):
        state, metrics = update(state, part, frozen)
    assert update._cache_size() == 1
    return jax.device_get((state.params, metrics))

  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), run(mesh), run(alone))
  print('trained')


if __name__ == '__main__':
  check()
