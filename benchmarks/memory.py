"""What `--dry_run` predicts against what is then held, at random weights: search, sft's step, rl's rollout and update.

    python -m benchmarks.memory --shape smollm2 --prompts 4 --group 4 --length 512 --new 64 --remat full

On a GPU or TPU the device counts its own bytes; on a CPU it is the resident memory of the process, so run it with
MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=65536 and no other malloc settings: freed memory that is kept would count.
A GPU's peak only grows: one moment a process there, `--moments rl:update`. The search has a grammar of made-up numbers:
buffers as planned, trees without meaning. Goal: within 10 %, a ratio between .91 and 1.10.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from configs import defaults
from eagrl_jax.lm import lora, model
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.mesh import make_mesh
from eagrl_jax.stages import memory, programs, settings
from eagrl_jax.train import state as state_lib
from eagrl_jax.train.optimizer import make_optimizer

MOMENTS = ('search:search', 'sft:update', 'rl:rollout', 'rl:update')


def held(peak: bool = False) -> int:
  """Bytes in use now, or at most since `restart`."""
  stats = jax.local_devices()[0].memory_stats()
  if stats is not None:
    return stats['peak_bytes_in_use' if peak else 'bytes_in_use']
  field = 'VmHWM:' if peak else 'VmRSS:'
  with open('/proc/self/status') as file:
    return int(next(line for line in file if line.startswith(field)).split()[1]) * 1024


def restart() -> None:
  """The peak of a process starts again at what it holds now; a GPU's cannot, and only grows."""
  gc.collect()
  time.sleep(1)  # temporaries of a program are freed after its results are ready
  if jax.local_devices()[0].memory_stats() is None:
    with open('/proc/self/clear_refs', 'w') as file:
      file.write('5')


def filled(shapes):
  """Arrays of these shapes: flags are up, token ids and numbers small."""
  rng = np.random.default_rng(0)

  def one(x):
    value = np.ones(x.shape, bool) if x.dtype == bool else (
        rng.integers(0, 8, x.shape) if x.dtype == np.int32 else rng.random(x.shape) - 0.5)
    return jax.device_put(value.astype(x.dtype), x.sharding)

  return jax.tree.map(one, shapes)


def prepared(c, lm: LMConfig, mesh, sizes: programs.Sizes, stage: str, what: str) -> tuple[Any, Any]:
  """A moment's compiled program, and made-up data in the shapes that it takes."""
  if what == 'search':
    return programs.search(c, lm, mesh, sizes), filled(programs.search_batch(c, lm, mesh, sizes))
  if what == 'rollout':
    return programs.rollout(c, lm, mesh, sizes, stage), filled(programs.prompt(mesh, c.rl.prompts, sizes.prompt))
  if stage == 'rl':
    return programs.rl_step(c, lm, mesh, sizes), filled(programs.rl_batch(c, mesh, sizes))
  lesson = programs.trajectories(c, sizes)
  return programs.supervised_step(c, lm, mesh, stage, lesson), filled(programs.supervised_batch(mesh, lesson))


def peak(c, lm: LMConfig, mesh, stage: str, what: str, program: Any, given: Any, init: Any) -> int:
  """Bytes held at most while a moment lasts; what it takes is freed when it is over."""
  key = jax.random.key(0)
  params = jax.block_until_ready(init(key))
  if what == 'search':
    args = (params, *given, key)
  else:
    state = state_lib.from_params(params, lm, make_optimizer(settings.optimizer(c, stage, 100)), mesh)
    trained, frozen = lora.split(params, lm)
    for x in jax.tree.leaves(trained):
      x.delete()
    args = (state, given, frozen) if what == 'update' else (
        lora.join(state.params, frozen), given.tokens, given.valid, given.example, key)
    jax.block_until_ready(state)
  restart()
  jax.block_until_ready(program(*args))
  return held(peak=True)


def compare(c, lm: LMConfig, sizes: programs.Sizes, moments: Sequence[str] = MOMENTS) -> dict[str, tuple[int, int]]:
  """Moment -> predicted and measured bytes, weights and optimiser included."""
  mesh = make_mesh()
  each = [moment.split(':') for moment in moments]
  predicted = [memory.moment(c, lm, mesh, sizes, stage, what).total for stage, what in each]
  init = jax.jit(lambda k: model.init(lm, k), out_shardings=model.param_shardings(lm, mesh)).lower(
      jax.random.key(0)).compile()
  ready = [prepared(c, lm, mesh, sizes, stage, what) for stage, what in each]
  start = (restart(), held())[1]
  measured = [peak(c, lm, mesh, *moment, *program, init) - start for moment, program in zip(each, ready)]
  return dict(zip(moments, zip(predicted, measured)))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--shape', choices=measure.SHAPES, default='smollm2')
  parser.add_argument('--prompts', type=int, default=4)
  parser.add_argument('--micro', type=int, default=2)
  parser.add_argument('--group', type=int, default=4)
  parser.add_argument('--length', type=int, default=512)
  parser.add_argument('--new', type=int, default=64)
  parser.add_argument('--remat', default='full')
  parser.add_argument('--compute_dtype', default='float32')
  parser.add_argument('--lora_rank', type=int, default=0)
  parser.add_argument('--moments', nargs='+', choices=MOMENTS, default=MOMENTS)
  a = parser.parse_args()
  c = defaults.get_config()
  c.rl.update(prompts=a.prompts, group=a.group, max_new=a.new, micro_batch=a.micro, minibatches=1, kl=0.0)
  c.search.update(trees=a.prompts)
  c.sft.update(batch=a.prompts, micro_batch=a.micro)
  c.lm.update(remat=a.remat, compute_dtype=a.compute_dtype, lora_rank=a.lora_rank)
  lm = dataclasses.replace(settings.shaped(measure.SHAPES[a.shape], c), vocab_size=measure.SHAPES[a.shape].vocab_size)
  for moment, (predicted, found) in compare(c, lm, programs.Sizes(a.length, 64, a.new), a.moments).items():
    measure.report(f'memory of {moment}, {a.shape}, remat {a.remat}, lora {a.lora_rank}', 'bytes', float(predicted),
                   float(found), 'measured', None)


if __name__ == '__main__':
  main()
