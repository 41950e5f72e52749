"""What eight devices send each other: the vocabulary matrix stays where it lies. Reads compiled programs.

Runs itself in a process with eight fake CPU devices. Sizes are all different, so that a shape tells what an array is.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from unittest import mock

import jax
import pytest

B, G, S, T, F = 16, 2, 12, 6, 5  # 96 answer tokens a micro-batch of 8
VOCAB, WIDTH = 1016, 80
CHUNK = 512  # rows, of eight devices
MESHES = {'data=8': (8, 1, 1), 'fsdp=8': (1, 8, 1), 'data=4 tensor=2': (4, 1, 2), 'fsdp=4 tensor=2': (1, 4, 2)}
COLLECTIVE = re.compile(r'= (\(?[a-z0-9]+\[.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)'
                        r'(?:-start)?\(')


@pytest.fixture(scope='module')
def programs():
  """Of each mesh and program: pairs of a collective and the shape that it leaves, in the order of the program."""
  env = os.environ | {
      'JAX_NUM_CPU_DEVICES': '8', 'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir or '', 'PYTHONPATH': os.pathsep.join(sys.path)}
  done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout)


def large(program, ways):
  """All-gathers of a device's share of the vocabulary matrix or more; `ways` devices share it."""
  return [shape for kind, shape in program if kind == 'all-gather' and math.prod(shape) * ways >= VOCAB * WIDTH]


@pytest.mark.parametrize('program', ['update', 'sample'])
@pytest.mark.parametrize('mesh', MESHES)
def test_the_vocabulary_matrix_stays_where_it_lies(programs, mesh, program):
  """Neither it nor the logits are gathered: rows [R, D] meet it where it lies, its gradient stays there.

  Other weights are gathered over fsdp where they are used; all of them are smaller here than the share in question.
  """
  ways = math.prod(MESHES[mesh][1:])
  assert programs[mesh][program] and large(programs[mesh][program], ways) == []


@pytest.mark.parametrize('mesh', MESHES)
def test_nothing_is_moved_between_trainer_and_sampler(programs, mesh):
  """An update leaves every array where the next one, and the sampler, which was compiled for that, take it."""
  assert programs[mesh]['moved'] == []


@pytest.mark.parametrize('mesh', MESHES)
def test_a_devices_logits_are_of_its_own_slice(programs, mesh):
  """No exchange leaves a row's V logits on a device in the update, nor adds up shares of them."""
  assert [shape for _, shape in programs[mesh]['update'] if VOCAB in shape and WIDTH not in shape] == []


@pytest.mark.parametrize('mesh', MESHES)
def test_the_loop_over_row_chunks_sends_rows_alone(programs, mesh):
  """The gradient of the head is added up over `data` once, after the loop: not at every chunk."""
  data, *rest = MESHES[mesh]
  share = VOCAB * WIDTH // math.prod(rest)
  assert [shape for _, shape in programs[mesh]['head_loop'] if math.prod(shape) > CHUNK * WIDTH or VOCAB in shape] == []
  whole = [kind for kind, shape in programs[mesh]['head'] if sorted(shape)[-2:] == sorted((share // WIDTH, WIDTH))]
  assert whole == ['all-reduce'] * (data > 1)


@pytest.mark.parametrize('mesh', ['fsdp=8', 'data=8'])
def test_a_layer_keeps_its_rows(programs, mesh):
  """Weights come to the rows of a device: of all rows only the states beside the vocabulary, [.., D], are sent."""
  rows = ([B // 2, S], [B // 2, G, T])
  sent = [shape for _, shape in programs[mesh]['update'] for r in rows if shape[:len(r)] == r and shape[len(r):]]
  assert [shape for shape in sent if shape[-1] != WIDTH] == []


def loops(text: str) -> str:
  """The bodies of a compiled program's loops."""
  bodies = re.findall(r'body=%?([\w.-]+)', text)
  assert bodies
  return '\n'.join(part for part in re.split(r'\n(?=\S)', text) if part.split(' ', 1)[0].lstrip('%') in bodies)


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
  from eagrl_jax.lm import logprobs, sampler
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
  hidden, targets = mesh_lib.shard_batch(mesh, (zeros(8, CHUNK // 4, WIDTH), np.zeros((8, CHUNK // 4), int)))
  head = jax.grad(lambda p, h: logprobs.token_logprobs(p, lm, h, targets)[0].sum(), (0, 1))
  # As small as chunks get: two of them.
  with mock.patch.object(logprobs, 'CHUNK_LOGITS', 1):
    text = jax.jit(head).lower(state.params, hidden).compile().as_text()
  trained = update.lower(state, batch).compile()
  left = jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state,
                      trained.output_shardings[0])
  same = jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim), state, left)
  moved = [jax.tree_util.keystr(path) for path, it in jax.tree_util.tree_leaves_with_path(same) if not it]
  sampled = jax.jit(sample).lower(left.params, batch.prompt, key).compile()
  return {'head': text, 'head_loop': loops(text), 'update': trained.as_text(), 'sample': sampled.as_text(),
          'moved': '\n'.join(moved)}


if __name__ == '__main__':
  compiled = {name: texts(shape) for name, shape in MESHES.items()}
  if len(sys.argv) > 1:  # to read
    print(json.dumps(compiled))
  else:
    print(json.dumps({name: {k: text.split() if k == 'moved' else collectives(text) for k, text in programs.items()}
                      for name, programs in compiled.items()}))
