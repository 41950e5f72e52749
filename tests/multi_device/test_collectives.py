"""What eight devices send each other: whether the vocabulary matrix stays where it lies. Reads compiled programs.

Runs itself in a process with eight fake CPU devices. Sizes are all different, so that a shape tells what an array is.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys

import jax
import pytest

B, G, S, T, F = 16, 2, 12, 6, 5  # 96 answer tokens a micro-batch of 8
VOCAB, WIDTH = 1016, 80
MESHES = {'fsdp=8': (1, 8, 1), 'data=4 tensor=2': (4, 1, 2)}
COLLECTIVE = re.compile(r'= (\(?[a-z0-9]+\[.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)'
                        r'(?:-start)?\(')


@pytest.fixture(scope='module')
def programs():
  """Of each mesh and program: pairs of a collective and the shape that it leaves, in the order of the program."""
  env = os.environ | {
      'XLA_FLAGS': '--xla_force_host_platform_device_count=8', 'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir or '', 'PYTHONPATH': os.pathsep.join(sys.path)}
  done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout)


def gathered(program):
  """All-gathers whose result has the size of the vocabulary matrix: [V, D], [D, V] or flat."""
  return [shape for kind, shape in program if kind == 'all-gather' and math.prod(shape) == VOCAB * WIDTH]


@pytest.mark.parametrize('mesh', MESHES)
def test_the_sampler_gathers_no_vocabulary_matrix(programs, mesh):
  assert programs[mesh]['sample'] and gathered(programs[mesh]['sample']) == []


def test_the_update_gathers_none_over_tensor(programs):
  program = programs['data=4 tensor=2']['update']
  assert program and gathered(program) == []


def test_the_update_gathers_it_once_over_fsdp(programs):
  """In the backward pass of `lm.logprobs.token_logprobs`, in the loop: anew for every chunk of rows.

  Forward the devices add up their shares of a chunk's logits; backward, of `d logits @ head.T`, each wants its own rows
  and so the whole head. Elsewhere weights are gathered where they are used by design; a second one here would be new.
  """
  assert [sorted(shape) for shape in gathered(programs['fsdp=8']['update'])] == [[WIDTH, VOCAB]]


def collectives(text: str) -> list[tuple[str, list[int]]]:
  """Collectives of a compiled program, one entry an array."""
  found = []
  for line in text.splitlines():
    if match := COLLECTIVE.search(line):
      shapes = re.findall(r'[a-z0-9]+\[([\d,]*)\]', match[1])
      found += [(match[2], [int(n) for n in shape.split(',') if n]) for shape in shapes]
  return found


def test_a_collective_is_read():
  text = ('  %g.1 = f32[80,1016]{1,0} all-gather(f32[10,1016]{1,0} %x), dimensions={0}\n'
          '  ROOT r = (f32[], pred[3]{0}) all-reduce(%a, %b), to_apply=%sum\n  %s = f32[4]{0} add(%u, %all-gather)\n')
  assert collectives(text) == [('all-gather', [80, 1016]), ('all-reduce', []), ('all-reduce', [3])]


def texts(shape: tuple[int, int, int]) -> dict[str, str]:
  """The update and the sampler as compiled for a mesh."""
  import jax.numpy as jnp
  import numpy as np

  from eagrl_jax import mesh as mesh_lib
  from eagrl_jax.lm import sampler
  from eagrl_jax.lm.config import LMConfig
  from eagrl_jax.rl.update import RLBatch, UpdateConfig, make_update
  from eagrl_jax.train import state as state_lib
  from eagrl_jax.train.optimizer import OptimizerConfig, make_optimizer
  from eagrl_jax.types import PromptBatch, Rollout

  assert jax.device_count() == 8
  lm = LMConfig(vocab_size=VOCAB, d_model=WIDTH, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=32)
  optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, total_steps=10))
  mesh = mesh_lib.make_mesh(*shape)
  jax.set_mesh(mesh)
  state = state_lib.abstract(lm, optimizer, mesh)
  zeros = lambda *s: np.zeros(s, np.float32)
  prompt = PromptBatch(np.zeros((B, S), int), np.zeros((B, S), bool), np.zeros((B, S), int), np.zeros(B, int))
  batch = mesh_lib.shard_batch(mesh, RLBatch(
      prompt, Rollout(np.zeros((B, G, T), int), np.zeros((B, G, T), bool), zeros(B, G, T), zeros(B, G, T)),
      zeros(B, G), zeros(B, G), zeros(B), zeros(B, F), np.zeros((B, G, T), bool)))
  update = make_update(lm, optimizer, UpdateConfig(micro_batch=8), state_lib.state_shardings(lm, optimizer, mesh))
  sample = lambda params, prompt, key: sampler.generate(
      params, lm, prompt, key, group=G, max_new=T, temperature=1.0, stop_ids=(1,), pad_id=0)
  key = jax.eval_shape(lambda: jax.random.key(jnp.int32(0)))
  return {'update': update.lower(state, batch).compile().as_text(),
          'sample': jax.jit(sample).lower(state.params, batch.prompt, key).compile().as_text()}


if __name__ == '__main__':
  compiled = {name: texts(shape) for name, shape in MESHES.items()}
  if len(sys.argv) > 1:  # to read
    print(json.dumps(compiled))
  else:
    print(json.dumps({name: {k: collectives(text) for k, text in programs.items()}
                      for name, programs in compiled.items()}))
