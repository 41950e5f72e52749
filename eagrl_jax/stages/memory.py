"""What a stage will hold on a device: from shapes where that is exact, from XLA's own plan for what it computes.

Call it under `jax.set_mesh`, see `stages.programs`.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from eagrl_jax.lm import cache, logprobs, lora, model
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.mesh import shards
from eagrl_jax.stages import graph, programs, settings
from eagrl_jax.stages.programs import Sizes
from eagrl_jax.train import state as state_lib
from eagrl_jax.train.optimizer import make_optimizer
from eagrl_jax.types import Params

HEADROOM = 0.95  # of a device's memory that may be planned for
STAGES = ('base', 'search', 'sft', 'rl', 'evaluate')  # those that hold the policy, as they run


@dataclasses.dataclass(frozen=True)
class Moment:
  """Bytes a device while a stage does one thing: a key of `advice.FIXES`."""

  stage: str
  what: str
  parts: dict[str, int]

  @property
  def total(self) -> int:
    return sum(self.parts.values())


def predict(c: ConfigDict, lm: LMConfig, mesh: Mesh, sizes: Sizes, elsewhere: bool = False) -> Iterator[Moment]:
  """The fullest moment of every stage that `config.target` takes, each as soon as it is worked out.

  Args:
    elsewhere: planned on a CPU, if this is one, for accelerators.
  """
  taken = {stage.name for stage in graph.selected(c)}
  for stage in (name for name in STAGES if name in taken):
    if found := [moment(c, lm, mesh, sizes, stage, what, elsewhere) for what in things(c, sizes, stage)]:
      yield max(found, key=lambda m: m.total)


def things(c: ConfigDict, sizes: Sizes, stage: str) -> tuple[str, ...]:
  """What a stage does with the policy, one after the other; of base's lessons the one whose pass is longest.

  A server's answers (`rl.rollouts`) are read in passes of `rl.micro_batch` without gradients: less than the update.
  """
  longest = sorted(sizes.lessons, key=lambda name: sizes.lessons[name].tokens)[-1:]
  rl = ('update', 'rollout') if c.rl.rollouts == 'own' else ('update',)
  evaluate = ('rollout', 'search') if 'search' in c.evaluate.inference else ('rollout',)
  return {'base': tuple(longest), 'search': ('search',), 'sft': ('update',), 'rl': rl, 'evaluate': evaluate}[stage]


def moment(c: ConfigDict, lm: LMConfig, mesh: Mesh, sizes: Sizes, stage: str, what: str,
           elsewhere: bool = False) -> Moment:
  """What a stage holds while it does one of its `things`; `elsewhere` as of `predict`."""
  if what == 'rollout':
    parts = rollout_parts(c, lm, mesh, sizes, stage, elsewhere)
  elif what == 'search':
    parts = search_parts(c, lm, mesh, sizes, elsewhere)
  elif stage == 'rl':
    batch = c.rl.prompts // c.rl.minibatches
    parts = planned(programs.rl_step(c, lm, mesh, sizes), lm, mesh, batch > c.rl.micro_batch, elsewhere)
  else:
    lesson = programs.trajectories(c, sizes) if stage == 'sft' else sizes.lessons[what]
    step = programs.supervised_step(c, lm, mesh, stage, lesson)
    parts = planned(step, lm, mesh, lesson.batch > lesson.micro, elsewhere)
  return Moment(stage, what, held_by(c, lm, mesh, stage) | parts)


def held_by(c: ConfigDict, lm: LMConfig, mesh: Mesh, stage: str) -> dict[str, int]:
  """What a stage keeps throughout: weights, and where it trains them, what it needs from step to step."""
  held = {'weights': local_bytes(model.abstract(lm, mesh))}
  if stage in ('search', 'evaluate'):
    return held
  state = state_lib.abstract(lm, make_optimizer(settings.optimizer(c, stage, 100)), mesh)
  held['optimiser'] = local_bytes(state.opt_state)
  return held | ({'reference': local_bytes(state.params)} if stage == 'rl' and c.rl.kl else {})


def planned(step: Any, lm: LMConfig, mesh: Mesh, in_parts: bool, elsewhere: bool = False) -> dict[str, int]:
  """What a compiled update needs beside its arguments.

  Args:
    in_parts: a part of the batch at a time, whose gradients are added to those of the parts before.
    elsewhere: as of `predict`.
  """
  temporary = step.memory_analysis().temp_size_in_bytes + unplanned(lm, mesh, elsewhere)
  gradients = min(temporary, (2 if in_parts else 1) * trained_bytes(lm, mesh))
  return {'gradients': gradients, 'activations': temporary - gradients}


def trained_bytes(lm: LMConfig, mesh: Mesh) -> int:
  """Bytes of the weights that a stage trains, and of their gradients."""
  return local_bytes(lora.split(model.abstract(lm, mesh), lm)[0])


def unplanned(lm: LMConfig, mesh: Mesh, elsewhere: bool = False) -> int:
  """Bytes that an update takes beside XLA's plan, `elsewhere` as of `predict`.

  On a CPU the matrix library packs the head for products with it. An accelerator has the logits of more rows at a time
  than a CPU plans for, float32, and their gradient.
  """
  if jax.default_backend() != 'cpu':
    return 0
  if elsewhere:
    return 8 * logprobs.ACCELERATOR_ROWS * lm.vocab_size // shards(('vocab',), (lm.vocab_size,))
  return lm.vocab_size * lm.d_model * 4 // mesh.shape['tensor']


def rollout_parts(c: ConfigDict, lm: LMConfig, mesh: Mesh, sizes: Sizes, stage: str, elsewhere: bool = False
                  ) -> dict[str, int]:
  """What the sampler holds beside the weights; `elsewhere` as of `predict`."""
  kv = rollout_kv(c, lm, mesh, sizes, stage)
  return _beside(programs.rollout(c, lm, mesh, sizes, stage), lm, mesh, kv, elsewhere)


def search_parts(c: ConfigDict, lm: LMConfig, mesh: Mesh, sizes: Sizes, elsewhere: bool = False) -> dict[str, int]:
  """What the search of a batch of trees holds beside the weights; `elsewhere` as of `predict`."""
  return _beside(programs.search(c, lm, mesh, sizes), lm, mesh, search_kv(c, lm, mesh, sizes), elsewhere)


def _beside(program: Any, lm: LMConfig, mesh: Mesh, kv: int, elsewhere: bool) -> dict[str, int]:
  """XLA's plan of a program that reads weights again and again: their copy, keys and values, and the rest."""
  plan, copy = program.memory_analysis(), used_bytes(lm, mesh)
  rest = plan.temp_size_in_bytes + plan.output_size_in_bytes - kv - copy
  if elsewhere and cache.unrolled(lm) and not cache.unrolled(lm, 'an accelerator'):
    rest -= local_bytes(model.abstract(lm, mesh)['layers'])  # only a CPU holds them once more, layer by layer
  return {'copy': copy, 'KV': kv, 'activations': max(rest, 0)}


def used_bytes(lm: LMConfig, mesh: Mesh) -> int:
  """Bytes of the weights that `model.as_used` copies to the compute dtype."""
  stored = model.abstract(lm, mesh)
  used = jax.eval_shape(lambda p: model.as_used(p, lm), stored)
  cast = lambda old, new: 0 if old.dtype == new.dtype else local_bytes(old) // old.dtype.itemsize * new.dtype.itemsize
  return sum(jax.tree.leaves(jax.tree.map(cast, stored, used)))


def rollout_kv(c: ConfigDict, lm: LMConfig, mesh: Mesh, sizes: Sizes, stage: str) -> int:
  """Keys and values of the prompts at a time and of the answers to each."""
  b, g, t = programs.answers(c, stage)
  return math.ceil(b / _ways(mesh)) * (sizes.prompt + g * t) * kv_bytes(lm, mesh)


def search_kv(c: ConfigDict, lm: LMConfig, mesh: Mesh, sizes: Sizes) -> int:
  """Keys and values of a batch of trees: each prompt's, each node's, and the path and siblings under work."""
  s = c.search
  nodes = settings.search(c).n_nodes + s.max_depth + 2 * s.candidates
  return math.ceil(s.trees / _ways(mesh)) * (sizes.prompt + nodes * programs.step_tokens(c)) * kv_bytes(lm, mesh)


def kv_bytes(lm: LMConfig, mesh: Mesh) -> int:
  """Bytes a device of one cached token, all layers."""
  tensor = mesh.shape['tensor']
  heads = lm.n_kv_heads // tensor if lm.n_kv_heads % tensor == 0 else lm.n_kv_heads
  return 2 * lm.n_layers * heads * lm.head_dim * np.dtype(jax.numpy.dtype(lm.compute_dtype)).itemsize


def local_bytes(tree: Params) -> int:
  """Bytes on one device."""
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def capacity() -> int:
  """Bytes of the first device; of a CPU, the machine's memory shared out over the devices it stands for."""
  device = jax.local_devices()[0]
  stats = device.memory_stats()
  if stats and 'bytes_limit' in stats:
    return stats['bytes_limit']
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // jax.local_device_count()


def _ways(mesh: Mesh) -> int:
  return mesh.shape['data'] * mesh.shape['fsdp']
