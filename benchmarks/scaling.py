"""What it costs to share a search and an update over more devices, and how both grow with the prompt.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --split fsdp --stages update --devices 1 4

Weak scaling: every device has `--per_device` patients. The devices are pretended on this machine's cores, so n of them
have n times the work and no more hands; what compares is the same batch on one of them, call by call in turn. `ratio`,
their quotient, is 1 where sharing costs nothing; what it lacks is copies, collectives and waiting, with links as fast
as memory. It says nothing of real links: docs/scaling.md works those out.

Each number of devices has a process of its own, because it is fixed when JAX starts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, search
from eagrl_jax import mesh as mesh_lib
from eagrl_jax.lm import model
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.tokenizer import train_tokenizer
from eagrl_jax.rl.update import RLBatch, UpdateConfig, make_update
from eagrl_jax.search import steps
from eagrl_jax.search.decode import StepConfig
from eagrl_jax.search.grammar_compiler import GrammarConfig, compile_grammar
from eagrl_jax.search.mcts import SearchConfig
from eagrl_jax.train import state as state_lib
from eagrl_jax.train.optimizer import OptimizerConfig, make_optimizer
from eagrl_jax.types import PromptBatch, Rollout

SPLITS = ('data', 'fsdp')
FEATURES = len(search.NAMES)


def prompts(cfg: LMConfig, rows: int, length: int) -> PromptBatch:
  rng = np.random.default_rng(0)
  shape = (rows, length)
  return PromptBatch(rng.integers(4, cfg.vocab_size, shape).astype(np.int32), np.ones(shape, bool),
                     np.broadcast_to(np.arange(length) * FEATURES // length, shape).astype(np.int32),
                     np.arange(rows, dtype=np.int32))


def update(cfg: LMConfig, mesh: jax.sharding.Mesh, rows: int, length: int, a: argparse.Namespace) -> Callable[[], None]:
  """A call is one update on `rows` groups, the loss of attention included."""
  rng, shape = np.random.default_rng(1), (rows, a.group, a.new)
  real = lambda *s: rng.normal(size=s).astype(np.float32)
  rollout = Rollout(rng.integers(4, cfg.vocab_size, shape).astype(np.int32), np.ones(shape, bool),
                    real(*shape) - 6, np.ones(shape, np.float32))
  batch = mesh_lib.shard_batch(mesh, RLBatch(
      prompts(cfg, rows, length), rollout, real(*shape[:2]), np.full(shape[:2], 0.3, np.float32),
      np.ones(rows, np.float32), rng.dirichlet(np.ones(FEATURES), rows).astype(np.float32), np.ones(shape, bool)))
  optimizer = make_optimizer(OptimizerConfig(1e-6, total_steps=100))
  held = [state_lib.create(cfg, optimizer, jax.random.key(0), mesh)]
  step = make_update(cfg, optimizer, UpdateConfig(rows, c_align=0.05), state_lib.state_shardings(cfg, optimizer, mesh))

  def call() -> None:
    held[0], metrics = step(held[0], batch)
    jax.block_until_ready((held[0], metrics))

  return call


def tree_search(cfg: LMConfig, mesh: jax.sharding.Mesh, rows: int, length: int, a: argparse.Namespace
                ) -> Callable[[], None]:
  """A call is one search with `rows` trees of one step, 2 rollouts and 2 siblings."""
  tokenizer = train_tokenizer([search.FORMAT.format(1, search.FINAL)], search.NAMES, 2048)
  grammar = jax.tree.map(jnp.asarray, compile_grammar(tokenizer, search.NAMES, cfg.vocab_size, GrammarConfig(
      final_question=search.FINAL, max_depth=1, max_features=3, question_tokens=a.new // 2,
      answer_tokens=a.new - a.new // 2)))
  params = jax.jit(lambda k: model.init(cfg, k), out_shardings=model.param_shardings(cfg, mesh))(jax.random.key(0))
  rng = np.random.default_rng(1)
  prompt, salience, label = mesh_lib.shard_batch(mesh, (
      prompts(cfg, rows, length), rng.dirichlet(np.ones(FEATURES), rows).astype(np.float32),
      {'label': rng.integers(0, 2, rows).astype(np.float32)}))
  config = SearchConfig(n_rollouts=2, n_candidates=2, max_depth=1, exploration=1.4)
  return lambda: jax.block_until_ready(steps.run(
      params, cfg, grammar, prompt, salience, search.terminal_reward, label, jax.random.key(1), config, StepConfig()))


STAGES = {'search': tree_search, 'update': update}


def case(a: argparse.Namespace) -> None:
  """In the process of a case: prints, a length, the seconds on all devices and on one of them."""
  n = a.devices[0]
  jax.config.update('jax_num_cpu_devices', n)
  meshes = [mesh_lib.make_mesh(fsdp=n if a.split == 'fsdp' else 1), mesh_lib.local_mesh(1)][:2 if n > 1 else 1]
  for length in a.lengths:
    calls = [STAGES[a.stages[0]](measure.shape(a), mesh, n * a.per_device, length, a) for mesh in meshes]
    times: list[list[float]] = [[] for _ in meshes]
    for _ in range(1 + a.reps):
      for mesh, call, taken in zip(meshes, calls, times):
        with jax.set_mesh(mesh):
          begun = time.perf_counter()
          call()
          taken.append(time.perf_counter() - begun)
    print(json.dumps([statistics.median(taken[1:]) for taken in times]))  # the first call compiles


def elsewhere(a: argparse.Namespace, stage: str, devices: int, lengths: list[int]) -> list[list[float]]:
  """The seconds of a case, from a process of its own."""
  words = [sys.executable, '-m', 'benchmarks.scaling', '--case', '--stages', stage, '--devices', devices, '--lengths',
           *lengths, '--per_device', a.per_device, '--group', a.group, '--new', a.new, '--reps', a.reps, '--shape',
           a.shape, '--compute_dtype', a.compute_dtype, '--attention', a.attention, '--split', a.split]
  done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False,
                        env=os.environ | {
                            'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.pathsep.join(sys.path),
                            'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir or ''})
  if done.returncode:
    raise SystemExit(f'{stage} on {devices} device(s) failed:\n{done.stderr[-2000:]}')
  return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  measure.add_shape_flags(parser, 'micro')
  parser.add_argument('--stages', nargs='+', choices=STAGES, default=list(STAGES))
  parser.add_argument('--devices', nargs='+', type=int, default=[2, 4, 8])
  parser.add_argument('--lengths', nargs='*', type=int, default=[128, 256, 512], help='prompt tokens, on one device')
  parser.add_argument('--length', type=int, default=64, help='prompt tokens of the weak scaling')
  parser.add_argument('--split', choices=SPLITS, default='data', help='what the devices share: batch, or weights too')
  parser.add_argument('--per_device', type=int, default=2, help='patients')
  parser.add_argument('--group', type=int, default=4, help='answers a patient, of the update')
  parser.add_argument('--new', type=int, default=16, help='tokens of an answer, or free ones of a step')
  parser.add_argument('--reps', type=int, default=11)
  parser.add_argument('--case', action='store_true', help=argparse.SUPPRESS)
  a = parser.parse_args()
  if a.case:
    case(a)
    return
  for stage in a.stages:
    seconds = [one for one, in elsewhere(a, stage, 1, [a.length, *a.lengths])]
    for length, taken in zip(a.lengths, seconds[1:]):
      measure.report(f'{stage}, {a.per_device} patients x {length} tokens', 's', taken, seconds[0],
                     f'ours, {a.length} tokens', None, shape=a.shape)
    for n in a.devices:
      (many, one), = elsewhere(a, stage, n, [a.length])
      measure.report(f'{stage}, {n} devices by {a.split}, {n * a.per_device} patients x {a.length} tokens', 's', many,
                     one, 'ours, the same batch on one device', None, shape=a.shape, one_share=seconds[0])


if __name__ == '__main__':
  main()
