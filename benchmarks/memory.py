"""What `--dry_run` predicts for the rl stage against what it takes, at random weights: its rollout and its update.

    python -m benchmarks.memory --shape smollm2 --prompts 4 --group 4 --length 512 --new 64 --remat full

On a GPU or TPU the device counts its own bytes; on a CPU it is the resident memory of the process, so run it with
MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=65536 and no other malloc settings: freed memory that is kept would count.
Goal: within 10 %, a ratio between .91 and 1.10.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import time

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


def compare(c, lm: LMConfig, sizes: programs.Sizes) -> dict[str, tuple[int, int]]:
  """Moment of the rl stage -> predicted and measured bytes, weights and optimiser included."""
  mesh = make_mesh()
  optimizer = make_optimizer(settings.optimizer(c, 'rl', 100))
  shapes = model.abstract(lm, mesh)
  state = state_lib.abstract(lm, optimizer, mesh)
  weights, moments = memory.local_bytes(shapes), memory.local_bytes(state.opt_state)
  update = programs.rl_step(c, lm, mesh, sizes)
  generate = programs.rollout(c, lm, mesh, sizes, 'rl')
  predicted = {'rollout': weights + moments + sum(memory.rollout_parts(c, lm, mesh, sizes, 'rl').values()),
               'update': weights + moments + update.memory_analysis().temp_size_in_bytes + memory.unplanned(lm, mesh)}
  where = model.param_shardings(lm, mesh)
  key = jax.random.key(0)
  init = jax.jit(lambda k: model.init(lm, k), out_shardings=where).lower(key).compile()
  batch, prompt = filled(programs.rl_batch(c, mesh, sizes)), filled(programs.prompt(mesh, c.rl.prompts, sizes.prompt))
  start = (restart(), held())[1]
  params = jax.block_until_ready(init(key))
  state = state_lib.from_params(params, lm, optimizer, mesh)
  frozen = lora.split(params, lm)[1]
  for x in jax.tree.leaves(lora.split(params, lm)[0]):
    x.delete()
  jax.block_until_ready(state)
  restart()
  out = generate(lora.join(state.params, frozen), prompt.tokens, prompt.valid, prompt.example, key)
  jax.block_until_ready(out)
  measured = {'rollout': held(peak=True) - start}
  del out
  restart()
  state = jax.block_until_ready(update(state, batch, frozen))
  return {name: (predicted[name], value) for name, value in (measured | {'update': held(peak=True) - start}).items()}


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
  a = parser.parse_args()
  c = defaults.get_config()
  c.rl.update(prompts=a.prompts, group=a.group, max_new=a.new, micro_batch=a.micro, minibatches=1, kl=0.0)
  c.lm.update(remat=a.remat, compute_dtype=a.compute_dtype, lora_rank=a.lora_rank)
  lm = dataclasses.replace(settings.shaped(measure.SHAPES[a.shape], c), vocab_size=measure.SHAPES[a.shape].vocab_size)
  for name, (predicted, measured) in compare(c, lm, programs.Sizes(a.length, 64, a.new)).items():
    measure.report(f'memory of the {name}, {a.shape}, remat {a.remat}, lora {a.lora_rank}', 'bytes', float(predicted),
                   float(measured), 'measured', None)


if __name__ == '__main__':
  main()
