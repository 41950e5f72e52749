"""What the stages run on a device, compiled from shapes alone: nothing is allocated.

Compile it under `jax.set_mesh`, as the stages run it: on several devices a program is another one without.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from eagrl_jax import mesh as mesh_lib
from eagrl_jax.lm import lora, model, sampler
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.rl.update import RLBatch, make_update
from eagrl_jax.search import steps
from eagrl_jax.search.grammar import Grammar
from eagrl_jax.search.mentions import Mentions
from eagrl_jax.stages import settings
from eagrl_jax.train import state as state_lib
from eagrl_jax.train.optimizer import make_optimizer
from eagrl_jax.train.supervised import SupervisedBatch, make_sft_step
from eagrl_jax.types import Array, Params, PromptBatch, Rollout

STEP_TAGS = 32  # tokens of the grammar's own words around a step's two texts: 6 of the tiny policy's, 24 of SmolLM2's
STATES, CHOICES = 1024, 128  # of the grammar's automaton: 99 probabilities, or first tokens of names, to choose among


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


def trajectories(c: ConfigDict, sizes: Sizes) -> Lesson:
  """What a step of sft is taught."""
  return Lesson(c.sft.batch, c.sft.micro_batch, c.search.top_k, sizes.prompt, sizes.trajectory)


def rl_step(c: ConfigDict, lm: LMConfig, mesh: Mesh, sizes: Sizes) -> Any:
  """The compiled update, from shapes: `(state, batch, frozen)`."""
  return _compiled(c, lm, mesh, 'rl', functools.partial(make_update, cfg=settings.update(c)), rl_batch(c, mesh, sizes))


def supervised_step(c: ConfigDict, lm: LMConfig, mesh: Mesh, stage: str, lesson: Lesson) -> Any:
  """The compiled step of base or sft, from shapes: `(state, batch, frozen)`."""
  make = functools.partial(make_sft_step, cfg=settings.supervised(c, stage, lesson.micro))
  return _compiled(c, lm, mesh, stage, make, supervised_batch(mesh, lesson))


def supervised_batch(mesh: Mesh, lesson: Lesson) -> SupervisedBatch:
  """Shapes of what a step of base or sft sees."""
  rows = lambda dtype: rows_of(mesh, dtype, lesson.batch, lesson.answers, lesson.answer)
  return SupervisedBatch(prompt(mesh, lesson.batch, lesson.prompt), rows(np.int32), rows(np.bool_), rows(np.float32))


def _compiled(c: ConfigDict, lm: LMConfig, mesh: Mesh, stage: str, make: Callable[..., Any], batch: Any) -> Any:
  optimizer = make_optimizer(settings.optimizer(c, stage, 100))
  state, shardings = state_lib.abstract(lm, optimizer, mesh), state_lib.state_shardings(lm, optimizer, mesh)
  _, frozen = lora.split(model.abstract(lm, mesh), lm)
  return make(lm, optimizer, state_shardings=shardings).lower(state, batch, frozen).compile()


def rl_batch(c: ConfigDict, mesh: Mesh, sizes: Sizes) -> RLBatch:
  """Shapes of what an update sees."""
  b, g, t = c.rl.prompts // c.rl.minibatches, c.rl.group, c.rl.max_new
  real, ids, flags = np.float32, np.int32, np.bool_
  like = lambda *spec: rows_of(mesh, *spec)
  return RLBatch(
      prompt=prompt(mesh, b, sizes.prompt),
      rollout=Rollout(like(ids, b, g, t), like(flags, b, g, t), like(real, b, g, t), like(real, b, g, t)),
      advantage=like(real, b, g), eps_high=like(real, b, g), weight=like(real, b),
      salience=like(real, b, sizes.features), align_mask=like(flags, b, g, t),
      ref_logprobs=like(real, b, g, t) if c.rl.kl else None)


def answers(c: ConfigDict, stage: str) -> tuple[int, int, int]:
  """Prompts, answers to each and their tokens, of one call of the sampler."""
  s = c[stage]
  return (s.prompts, s.group, s.max_new) if stage == 'rl' else (s.batch, s.samples, s.max_new)


def rollout(c: ConfigDict, lm: LMConfig, mesh: Mesh, sizes: Sizes, stage: str) -> Any:
  """The compiled sampler of a stage, from shapes: `(params, tokens, valid, example, key)`."""
  b, g, t = answers(c, stage)
  p = prompt(mesh, b, sizes.prompt)
  return sampler._generate.lower(
      model.abstract(lm, mesh), p.tokens, p.valid, p.example, _key(), cfg=lm, group=g, max_new=t, temperature=1.0,
      stop_ids=(lm.vocab_size,), pad_id=0).compile()


def search(c: ConfigDict, lm: LMConfig, mesh: Mesh, sizes: Sizes) -> Any:
  """The compiled search of a batch of trees, from shapes: `(params, *search_batch, key)`."""
  words, asked, salience, judged_by = search_batch(c, lm, mesh, sizes)
  return steps.run.lower(
      model.abstract(lm, mesh), lm, words, asked, salience, _as_stated, judged_by, _key(), settings.search(c),
      settings.step(c)).compile()


def search_batch(c: ConfigDict, lm: LMConfig, mesh: Mesh, sizes: Sizes) -> tuple[Grammar, PromptBatch, Any, Any]:
  """Shapes of what a search sees: its grammar, prompts, salience and what judges its answers."""
  b, f = c.search.trees, sizes.features
  judged_by = rows_of(mesh, np.float32, b), rows_of(mesh, np.bool_, b, f)
  return grammar(c, lm, f), prompt(mesh, b, sizes.prompt), rows_of(mesh, np.float32, b, f), judged_by


def _as_stated(prob: Array, named: Array, arguments: Params) -> Array:
  """Stands in for the reward, which is small beside the tree."""
  del named, arguments
  return prob


def step_tokens(c: ConfigDict) -> int:
  """Upper estimate of a step of the search: its question, its answer and the grammar's own words."""
  return c.search.question_tokens + c.search.answer_tokens + STEP_TAGS


def grammar(c: ConfigDict, lm: LMConfig, features: int) -> Grammar:
  """Shapes of the search's automaton; how many states and choices it has is a guess, and small beside its logits."""
  like: Any = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
  ids, v, q, w = np.int32, lm.vocab_size, STATES, max(CHOICES, features)
  state, edge = like(ids, q), like(ids, q, w)
  words, asked = like(np.bool_, v), like(ids, STEP_TAGS)
  spellings = 12 * features  # six of each name, and as many that a tokenizer merges with what follows
  spelt = like(ids, spellings)
  inner = step_tokens(c)
  return Grammar(
      kind=state, segment=state, edge_token=edge, edge_next=edge, edge_low=edge, edge_high=edge, edge_name=edge,
      edge_prob=like(np.float32, q, w), text_next=state, text_end=state, space=state, space_next=state,
      space_end=state, budget=state, leaf_name=like(ids, 2 * features), leaf_more=like(np.bool_, 2 * features),
      start=like(ids, c.search.max_depth + 1), stop=words, opens=words, useful=asked, yes=like(ids), no=like(ids),
      mentions=Mentions(token=like(ids, spellings, 8), length=spelt, feature=spelt, spaced=like(np.bool_, spellings),
                        begins_word=words, ends_word=words, n_features=features),
      n_features=features, max_features=c.reward.top_k, max_depth=c.search.max_depth, inner_tokens=inner,
      step_tokens=max(inner, 4 * c.reward.top_k + 2 * STEP_TAGS))


def prompt(mesh: Mesh, b: int, s: int) -> PromptBatch:
  rows = lambda dtype, *shape: rows_of(mesh, dtype, *shape)
  return PromptBatch(rows(np.int32, b, s), rows(np.bool_, b, s), rows(np.int32, b, s), rows(np.int32, b))


def rows_of(mesh: Mesh, dtype: Any, *shape: int) -> Any:
  """A batch array as `mesh.shard_batch` would place it."""
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  axes: tuple[str | None, ...] = ('batch', *[None] * (len(shape) - 1)) if shape[0] % ways == 0 else ()
  return jax.ShapeDtypeStruct(shape, dtype, sharding=mesh_lib.sharding(mesh, axes))


def _key() -> Any:
  return jax.eval_shape(lambda: jax.random.key(0))
