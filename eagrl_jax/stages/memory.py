"""What a stage will hold on a device: from shapes where that is exact, from XLA's own plan for what it computes.

Nothing is allocated: each step is compiled from shapes alone, for the devices that are there or pretended.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator
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
    'activations': ('{micro}', 'lm.remat', 'mesh.fsdp'),
    'KV': ('{kv}', 'mesh.data'),
    'weights': ('mesh.fsdp', 'lm.lora_rank', 'lm.compute_dtype'),
    'optimiser': ('mesh.fsdp', 'lm.lora_rank'),
    'reference': ('rl.kl', 'mesh.fsdp'),
}
HEADROOM = 0.95  # of a device's memory that may be planned for
KV_FIELD = {'search': 'search.trees', 'rl': 'rl.prompts', 'evaluate': 'evaluate.batch'}
STEP_TAGS = 32  # tokens of the grammar's own words around a step's two texts: 6 of the tiny policy's, 24 of SmolLM2's


@dataclasses.dataclass(frozen=True)
class Stage:
  """Bytes a device at the stage's fullest moment."""

  name: str
  parts: dict[str, int]  # keys of FIXES
  micro: str = ''  # field of the micro-batch that its activations are of

  @property
  def total(self) -> int:
    return sum(self.parts.values())


@dataclasses.dataclass(frozen=True)
class Lesson:
  """A supervised batch: prompts, how many of them at a time, answers to each; tokens of a prompt and of an answer."""

  batch: int
  micro: int
  answers: int
  prompt: int
  answer: int

  @property
  def tokens(self) -> int:
    """Of a forward and backward pass."""
    return self.micro * (self.prompt + self.answers * self.answer)


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Lengths that a dry run estimates: prompt tokens, features, answer tokens of a trajectory; what base is taught."""

  prompt: int
  features: int
  trajectory: int
  lessons: dict[str, Lesson] = dataclasses.field(default_factory=dict)  # by the field of their micro-batch


def predict(c: ConfigDict, lm: LMConfig, mesh: Mesh, sizes: Sizes) -> Iterator[Stage]:
  """The stages that hold the policy, each as soon as it is worked out."""
  weights = local_bytes(model.abstract(lm, mesh))
  if sizes.lessons:
    yield supervised_stage(c, lm, mesh, *max(sizes.lessons.items(), key=lambda item: item[1].tokens))
  yield Stage('search', {'weights': weights, 'KV': search_kv(c, lm, mesh, sizes)})
  trajectories = Lesson(c.sft.batch, c.sft.micro_batch, c.search.top_k, sizes.prompt, sizes.trajectory)
  yield supervised_stage(c, lm, mesh, 'sft.micro_batch', trajectories)
  held = held_by_training(c, lm, mesh, 'rl')
  update = Stage('rl', held | planned(rl_step(c, lm, mesh, sizes), lm, mesh), 'rl.micro_batch')
  rollout = Stage('rl', held | rollout_parts(c, lm, mesh, sizes, 'rl'))
  yield max(update, rollout, key=lambda s: s.total)
  yield Stage('evaluate', {'weights': weights} | rollout_parts(c, lm, mesh, sizes, 'evaluate'))


def supervised_stage(c: ConfigDict, lm: LMConfig, mesh: Mesh, field: str, lesson: Lesson) -> Stage:
  """Base or sft while it is taught `lesson`; `field` is that of the lesson's micro-batch."""
  name = field.partition('.')[0]
  step = supervised_step(c, lm, mesh, name, lesson)
  return Stage(name, held_by_training(c, lm, mesh, name) | planned(step, lm, mesh), field)


def planned(step: Any, lm: LMConfig, mesh: Mesh) -> dict[str, int]:
  """What a compiled update needs beside its arguments."""
  return {'activations': step.memory_analysis().temp_size_in_bytes + unplanned(lm, mesh)}


def held_by_training(c: ConfigDict, lm: LMConfig, mesh: Mesh, stage: str) -> dict[str, int]:
  """What a training stage keeps from step to step."""
  state = state_lib.abstract(lm, make_optimizer(settings.optimizer(c, stage, 100)), mesh)
  held = {'weights': local_bytes(model.abstract(lm, mesh)), 'optimiser': local_bytes(state.opt_state)}
  return held | ({'reference': local_bytes(state.params)} if stage == 'rl' and c.rl.kl else {})


def unplanned(lm: LMConfig, mesh: Mesh) -> int:
  """Bytes that an update takes beside XLA's plan: on a CPU the matrix library packs the head for products with it."""
  if jax.default_backend() != 'cpu':
    return 0
  return lm.vocab_size * lm.d_model * 4 // mesh.shape['tensor']


def rl_step(c: ConfigDict, lm: LMConfig, mesh: Mesh, sizes: Sizes) -> Any:
  """The compiled update, from shapes: `(state, batch, frozen)`."""
  return _compiled(c, lm, mesh, 'rl', functools.partial(make_update, cfg=settings.update(c)), rl_batch(c, mesh, sizes))


def supervised_step(c: ConfigDict, lm: LMConfig, mesh: Mesh, stage: str, lesson: Lesson) -> Any:
  """The compiled step of base or sft, from shapes: `(state, batch, frozen)`."""
  rows = lambda dtype: _rows(mesh, dtype, lesson.batch, lesson.answers, lesson.answer)
  batch = SupervisedBatch(prompt(mesh, lesson.batch, lesson.prompt), rows(np.int32), rows(np.bool_), rows(np.float32))
  make = functools.partial(make_sft_step, cfg=settings.supervised(c, stage, lesson.micro))
  return _compiled(c, lm, mesh, stage, make, batch)


def _compiled(c: ConfigDict, lm: LMConfig, mesh: Mesh, stage: str, make: Callable[..., Any], batch: Any) -> Any:
  optimizer = make_optimizer(settings.optimizer(c, stage, 100))
  state, shardings = state_lib.abstract(lm, optimizer, mesh), state_lib.state_shardings(lm, optimizer, mesh)
  _, frozen = lora.split(model.abstract(lm, mesh), lm)
  return make(lm, optimizer, state_shardings=shardings).lower(state, batch, frozen).compile()


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
      model.abstract(lm, mesh), p.tokens, p.valid, p.example, jax.eval_shape(lambda: jax.random.key(0)), cfg=lm,
      group=g, max_new=t, temperature=1.0, stop_ids=(lm.vocab_size,), pad_id=0).compile()


def search_kv(c: ConfigDict, lm: LMConfig, mesh: Mesh, sizes: Sizes) -> int:
  """Keys and values of a batch of trees: each prompt's, each node's, and the path and siblings under work."""
  s = c.search
  nodes = settings.search(c).n_nodes + s.max_depth + 2 * s.candidates
  return math.ceil(s.trees / _ways(mesh)) * (sizes.prompt + nodes * step_tokens(c)) * kv_bytes(lm, mesh)


def step_tokens(c: ConfigDict) -> int:
  """Upper estimate of a step of the search: its question, its answer and the grammar's own words."""
  return c.search.question_tokens + c.search.answer_tokens + STEP_TAGS


def kv_bytes(lm: LMConfig, mesh: Mesh) -> int:
  """Bytes a device of one cached token, all layers."""
  tensor = mesh.shape['tensor']
  heads = lm.n_kv_heads // tensor if lm.n_kv_heads % tensor == 0 else lm.n_kv_heads
  return 2 * lm.n_layers * heads * lm.head_dim * np.dtype(jnp.dtype(lm.compute_dtype)).itemsize


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
      field = field.format(micro=stage.micro, kv=KV_FIELD.get(stage.name, ''))
      if field and (found := _smaller(c, mesh, field)):
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
