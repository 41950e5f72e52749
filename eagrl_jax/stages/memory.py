"""What a stage will hold on a device: from shapes where that is exact, from XLA's own plan for what it computes.

Nothing is allocated: each step is compiled from shapes alone, for the devices that are there or pretended.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from eagrl_jax import mesh as mesh_lib
from eagrl_jax.lm import lora, model, sampler
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.rl.update import RLBatch, make_update
from eagrl_jax.stages import settings
from eagrl_jax.train import state as state_lib
from eagrl_jax.train.optimizer import make_optimizer
from eagrl_jax.train.supervised import SupervisedBatch, make_sft_step
from eagrl_jax.types import Params, PromptBatch, Rollout

FIXES = {  # part -> fields that shrink it, the first of them that still can
    'activations': ('{stage}.micro_batch', 'lm.remat', 'mesh.fsdp'),
    'KV': ('{kv}', 'mesh.data'),
    'weights': ('mesh.fsdp', 'lm.lora_rank', 'lm.compute_dtype'),
    'optimiser': ('mesh.fsdp', 'lm.lora_rank'),
    'reference': ('rl.kl', 'mesh.fsdp'),
}
HEADROOM = 0.95  # of a device's memory that may be planned for
KV_FIELD = {'search': 'search.trees', 'rl': 'rl.prompts', 'evaluate': 'evaluate.batch'}


@dataclasses.dataclass(frozen=True)
class Stage:
  """Bytes a device at the stage's fullest moment."""

  name: str
  parts: dict[str, int]  # keys of FIXES

  @property
  def total(self) -> int:
    return sum(self.parts.values())


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Lengths that a dry run estimates: prompt tokens, features, answer tokens of a trajectory."""

  prompt: int
  features: int
  trajectory: int


def predict(c: ConfigDict, lm: LMConfig, mesh: Mesh, sizes: Sizes) -> Iterator[Stage]:
  """The stages that hold the policy, each as soon as it is worked out."""
  _, frozen = lora.split(placed_params(lm, mesh), lm)
  weights = local_bytes(placed_params(lm, mesh))
  yield Stage('search', {'weights': weights, 'KV': search_kv(c, lm, mesh, sizes)})
  for name, program in (('sft', sft_step), ('rl', rl_step)):
    held = held_by_training(c, lm, mesh, name)
    optimizer = make_optimizer(settings.optimizer(c, name, 100))
    state = state_lib.abstract(lm, optimizer, mesh)
    plan = program(c, lm, mesh, sizes, optimizer, state, frozen).memory_analysis()
    update = Stage(name, held | {'activations': plan.temp_size_in_bytes + unplanned(lm, mesh)})
    if name == 'sft':
      yield update
      continue
    rollout = Stage(name, held | rollout_parts(c, lm, mesh, sizes, 'rl'))
    yield max(update, rollout, key=lambda s: s.total)
  yield Stage('evaluate', {'weights': weights} | rollout_parts(c, lm, mesh, sizes, 'evaluate'))


def held_by_training(c: ConfigDict, lm: LMConfig, mesh: Mesh, stage: str) -> dict[str, int]:
  """What a training stage keeps from step to step."""
  state = state_lib.abstract(lm, make_optimizer(settings.optimizer(c, stage, 100)), mesh)
  held = {'weights': local_bytes(placed_params(lm, mesh)), 'optimiser': local_bytes(state.opt_state)}
  return held | ({'reference': local_bytes(state.params)} if stage == 'rl' and c.rl.kl else {})


def unplanned(lm: LMConfig, mesh: Mesh) -> int:
  """Bytes that an update takes beside XLA's plan: on a CPU the matrix library packs the head for products with it."""
  if jax.default_backend() != 'cpu':
    return 0
  return lm.vocab_size * lm.d_model * 4 // mesh.shape['tensor']


def rl_step(c: ConfigDict, lm: LMConfig, mesh: Mesh, sizes: Sizes, optimizer, state, frozen) -> Any:
  """The compiled update, from shapes."""
  shardings = state_lib.state_shardings(lm, optimizer, mesh)
  update = make_update(lm, optimizer, settings.update(c), shardings)
  return update.lower(state, rl_batch(c, mesh, sizes), frozen).compile()


def rl_batch(c: ConfigDict, mesh: Mesh, sizes: Sizes) -> RLBatch:
  """Shapes of what an update sees."""
  b, g, t = c.rl.prompts // c.rl.minibatches, c.rl.group, c.rl.max_new
  real, ids, flags = np.float32, np.int32, np.bool_
  like = lambda *spec: _rows(mesh, *spec)
  return RLBatch(
      prompt=prompt(mesh, b, sizes.prompt),
      rollout=Rollout(like(ids, b, g, t), like(flags, b, g, t), like(real, b, g, t), like(real, b, g, t)),
      advantage=like(real, b, g), eps_high=like(real, b, g), weight=like(real, b),
      salience=like(real, b, sizes.features), align_mask=like(flags, b, g, t),
      ref_logprobs=like(real, b, g, t) if c.rl.kl else None)


def sft_step(c: ConfigDict, lm: LMConfig, mesh: Mesh, sizes: Sizes, optimizer, state, frozen) -> Any:
  """The compiled fine-tuning step, from shapes."""
  b, g, t = c.sft.batch, c.search.top_k, sizes.trajectory
  batch = SupervisedBatch(prompt(mesh, b, sizes.prompt), _rows(mesh, np.int32, b, g, t), _rows(mesh, np.bool_, b, g, t),
                          _rows(mesh, np.float32, b, g, t))
  shardings = state_lib.state_shardings(lm, optimizer, mesh)
  step = make_sft_step(lm, optimizer, settings.supervised(c, 'sft', c.sft.micro_batch), shardings)
  return step.lower(state, batch, frozen).compile()


def rollout_parts(c: ConfigDict, lm: LMConfig, mesh: Mesh, sizes: Sizes, stage: str) -> dict[str, int]:
  """Keys and values of the sampler, and the rest of what it holds beside the weights."""
  b, g, t = _answers(c, stage)
  plan = rollout(c, lm, mesh, sizes, stage).memory_analysis()
  kv = math.ceil(b / _ways(mesh)) * (sizes.prompt + g * t) * kv_bytes(lm, mesh)
  return {'KV': kv, 'activations': max(plan.temp_size_in_bytes + plan.output_size_in_bytes - kv, 0)}


def rollout(c: ConfigDict, lm: LMConfig, mesh: Mesh, sizes: Sizes, stage: str) -> Any:
  """The compiled sampler of a stage, from shapes: `(params, tokens, valid, example, key)`."""
  b, g, t = _answers(c, stage)
  p = prompt(mesh, b, sizes.prompt)
  return sampler._generate.lower(
      placed_params(lm, mesh), p.tokens, p.valid, p.example, jax.eval_shape(lambda: jax.random.key(0)), cfg=lm, group=g,
      max_new=t, temperature=1.0, stop_ids=(lm.vocab_size,), pad_id=0).compile()


def search_kv(c: ConfigDict, lm: LMConfig, mesh: Mesh, sizes: Sizes) -> int:
  """Keys and values of a batch of trees: each prompt's, each node's, and the path and siblings under work."""
  s = c.search
  step = s.question_tokens + s.answer_tokens + 32  # the grammar's own words
  nodes = settings.search(c).n_nodes + s.max_depth + 2 * s.candidates
  return math.ceil(s.trees / _ways(mesh)) * (sizes.prompt + nodes * step) * kv_bytes(lm, mesh)


def kv_bytes(lm: LMConfig, mesh: Mesh) -> int:
  """Bytes a device of one cached token, all layers."""
  tensor = mesh.shape['tensor']
  heads = lm.n_kv_heads // tensor if lm.n_kv_heads % tensor == 0 else lm.n_kv_heads
  return 2 * lm.n_layers * heads * lm.head_dim * np.dtype(jnp.dtype(lm.compute_dtype)).itemsize


def placed_params(lm: LMConfig, mesh: Mesh) -> Params:
  """Shapes of the weights with their shardings."""
  place: Any = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
  return jax.tree.map(place, model.abstract(lm), model.param_shardings(lm, mesh))


def prompt(mesh: Mesh, b: int, s: int) -> PromptBatch:
  return PromptBatch(_rows(mesh, np.int32, b, s), _rows(mesh, np.bool_, b, s), _rows(mesh, np.int32, b, s),
                     _rows(mesh, np.int32, b))


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


def advice(c: ConfigDict, mesh: Mesh, stage: Stage) -> str:
  """The field to change when a stage will not fit: of its largest part, the first that can still give."""
  for part in sorted(stage.parts, key=lambda name: -stage.parts[name]):
    for field in FIXES[part]:
      field = field.format(stage=stage.name, kv=KV_FIELD.get(stage.name, ''))
      if found := _smaller(c, mesh, field):
        return f'{part} weigh most: {found}'
  return 'every field that would help is at its smallest; use more or larger devices'


def _smaller(c: ConfigDict, mesh: Mesh, field: str) -> str:
  """A suggestion for `field`, '' where it has nothing left to give."""
  section, name = field.split('.')
  now = c[section].get(name)
  if field == 'lm.remat':
    return '' if now == 'full' else f"set --config.lm.remat={'full' if now == 'dots' else 'dots'}"
  if field == 'lm.lora_rank':
    return '' if now or c.lm.checkpoint == 'tiny' else 'set --config.lm.lora_rank=16 to train adapters alone'
  if field == 'lm.compute_dtype':
    return '' if now == 'bfloat16' else 'set --config.lm.compute_dtype=bfloat16'
  if field == 'rl.kl':
    return 'set --config.rl.kl=0 to do without the reference policy'
  if section == 'mesh':
    free = mesh.shape['data']
    return f'set --config.mesh.fsdp={mesh.shape["fsdp"] * 2}' if name == 'fsdp' and free % 2 == 0 else ''
  if now is None or now <= _ways(mesh):
    return ''
  return f'lower --config.{field}={now}'


def _answers(c: ConfigDict, stage: str) -> tuple[int, int, int]:
  """Prompts, answers to each and their tokens, of one call of the sampler."""
  s = c[stage]
  return (s.prompts, s.group, s.max_new) if stage == 'rl' else (s.batch, s.samples, s.max_new)


def _ways(mesh: Mesh) -> int:
  return mesh.shape['data'] * mesh.shape['fsdp']


def _rows(mesh: Mesh, dtype: Any, *shape: int) -> Any:
  """A batch array as `mesh.shard_batch` would place it."""
  axes: tuple[str | None, ...] = ('batch', *[None] * (len(shape) - 1)) if shape[0] % _ways(mesh) == 0 else ()
  return jax.ShapeDtypeStruct(shape, dtype, sharding=mesh_lib.sharding(mesh, axes))
