"""On four devices a dry run compiles the programs of the run. In a process of its own with four fake CPU devices."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax

ROOT = pathlib.Path(__file__).parents[2]


def test_four_devices_are_planned_as_they_run(tmp_path):
  env = os.environ | {
      'JAX_NUM_CPU_DEVICES': '4', 'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir or '',
      'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path])}
  done = subprocess.run([sys.executable, __file__, str(tmp_path)], env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  assert done.stdout.splitlines()[-1] == 'refused, planned, smaller'


def check(workdir: str) -> None:
  import jax.numpy as jnp
  import pytest

  from configs import defaults
  from eagrl_jax.lm import flash, lora, model, sampler
  from eagrl_jax.mesh import make_mesh, shard_batch
  from eagrl_jax.rl.update import make_update
  from eagrl_jax.stages import advice, memory, pipeline, programs, settings
  from eagrl_jax.train import state as state_lib
  from eagrl_jax.train.optimizer import make_optimizer
  from eagrl_jax.types import EagrlError

  c = defaults.get_config()
  c.lm.update(vocab_size=4096, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=128)
  c.rl.update(prompts=8, group=2, max_new=16, micro_batch=4, minibatches=1, kl=0.0)
  c.mesh.fsdp = 4
  lm, mesh, sizes = settings.tiny(c), make_mesh(1, 4, 1), programs.Sizes(32, 20, 32)
  temporary = lambda program: program.memory_analysis().temp_size_in_bytes

  split = c.copy_and_resolve_references()
  split.lm.update(attention='splash', n_kv_heads=1)
  split.mesh.update(fsdp=1, tensor=4)
  flash.check = lambda *_: None  # a CPU has no such kernel at all
  with pytest.raises(EagrlError, match="lm.attention='splash' needs mesh.tensor=4 to divide the 1 key-value heads"):
    pipeline.describe(split, pathlib.Path(workdir))

  seen = []

  def predict(c, lm, mesh, *_):
    found = programs.rl_step(c, lm, mesh, sizes), programs.rollout(c, lm, mesh, sizes, 'rl')
    seen.append(tuple(map(temporary, found)))
    return iter(())

  memory.predict = predict
  pipeline.describe(c, pathlib.Path(workdir))

  with jax.set_mesh(mesh):
    params = jax.jit(lambda k: model.init(lm, k), out_shardings=model.param_shardings(lm, mesh))(jax.random.key(0))
    optimizer = make_optimizer(settings.optimizer(c, 'rl', 100))
    state = state_lib.from_params(params, lm, optimizer, mesh)
    shardings = state_lib.state_shardings(lm, optimizer, mesh)
    batch, prompt = shard_batch(mesh, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (
        programs.rl_batch(c, mesh, sizes), programs.prompt(mesh, 8, 32))))
    update = make_update(lm, optimizer, settings.update(c), shardings)
    run = update.lower(state, batch, lora.split(params, lm)[1]).compile()
    rollout = sampler._generate.lower(
        params, prompt.tokens, prompt.valid, prompt.example, jax.random.key(0), cfg=lm, group=2, max_new=16,
        temperature=1.0, stop_ids=(1,), pad_id=0).compile()
  assert seen == [(temporary(run), temporary(rollout))], seen

  # What `mesh.fsdp` is named for is smaller with twice as much of it.
  two = make_mesh(2, 2, 1)
  with jax.set_mesh(two):
    wider = memory.moment(c, lm, two, sizes, 'rl', 'update')
    assert advice.change(c, lm, two, wider, 'mesh.fsdp') == {'mesh.fsdp': 4}
  assert seen[0][0] + memory.unplanned(lm, mesh) < wider.parts['gradients'] + wider.parts['activations']
  assert memory.trained_bytes(lm, mesh) < memory.trained_bytes(lm, two)
  lm, c.rl.kl = dataclasses.replace(lm, compute_dtype='bfloat16'), 0.1
  for stage in ('sft', 'rl', 'evaluate'):
    more, less = ((memory.held_by(c, lm, m, stage) | {'copy': memory.used_bytes(lm, m)}) for m in (two, mesh))
    assert all(less[part] < more[part] for part in more), stage
  print('refused, planned, smaller')


if __name__ == '__main__':
  check(sys.argv[1])
