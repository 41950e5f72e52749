"""ConfigDict sections -> the frozen dataclasses of the layers below.

The only place that does it, but for how the files of a source are read (`prepare.read_source`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from ml_collections import ConfigDict

from eagrl_jax.ehr import prompt as prompt_lib
from eagrl_jax.ehr import tasks
from eagrl_jax.ehr.sources.synthetic import SyntheticConfig
from eagrl_jax.ehr.sources.synthetic_features import DEFAULT_FEATURES
from eagrl_jax.ehr.tasks import Task
from eagrl_jax.ehr.warmup import USEFUL, final_question
from eagrl_jax.expert.concare import ConCareConfig
from eagrl_jax.expert.train import ExpertTrainConfig
from eagrl_jax.lm import bpe
from eagrl_jax.lm.config import LMConfig, LoraConfig
from eagrl_jax.rl.clip import ClipConfig
from eagrl_jax.rl.judge import JudgeConfig
from eagrl_jax.rl.rewards import RewardConfig
from eagrl_jax.rl.update import UpdateConfig
from eagrl_jax.search.decode import StepConfig
from eagrl_jax.search.grammar_compiler import GrammarConfig
from eagrl_jax.search.mcts import SearchConfig
from eagrl_jax.search.trajectories import SelectionConfig
from eagrl_jax.train.optimizer import OptimizerConfig
from eagrl_jax.train.supervised import SupervisedConfig
from eagrl_jax.types import EagrlError

T = TypeVar('T')


def synthetic(data: ConfigDict) -> SyntheticConfig:
  return SyntheticConfig(n=data.n, prevalence=data.prevalence, informative=data.informative, site=data.site,
                         features=DEFAULT_FEATURES)


def task(c: ConfigDict) -> Task:
  """What is predicted; a run from before the question could be chosen has none of its own."""
  return tasks.find(c.data.task, c.data.get('question', ''), c.data.get('quantity', ''))


def prompt(c: ConfigDict) -> prompt_lib.PromptConfig:
  p = c.prompt
  return prompt_lib.PromptConfig(
      task=task(c), style=p.style, reasoning=p.reasoning, may_refuse=p.get('may_refuse', True),
      max_depth=c.search.max_depth, top_k=c.reward.top_k, max_values=p.max_values, max_characters=p.max_characters)


def expert(c: ConfigDict) -> ExpertTrainConfig:
  """Every field of `config.expert` but `salience` and `checkpoint_every` belongs to the model or to its training."""
  fields = {k: v for k, v in c.expert.to_dict().items() if k not in ('salience', 'checkpoint_every')}
  own = {f.name for f in dataclasses.fields(ConCareConfig)}
  model = ConCareConfig(**{k: v for k, v in fields.items() if k in own})
  return ExpertTrainConfig(model, **{k: v for k, v in fields.items() if k not in own})


def tiny(c: ConfigDict) -> LMConfig:
  """The shape of the `tiny` policy; its vocabulary is an upper bound until the tokenizer is trained."""
  bpe.check_size(c.lm.vocab_size)
  return LMConfig(**{k: v for k, v in c.lm.to_dict().items() if k != 'checkpoint' and not k.startswith('lora_')})


def lora(c: ConfigDict) -> LoraConfig | None:
  """The adapters that are trained; None where every weight is."""
  if not c.lm.lora_rank:
    return None
  return LoraConfig(c.lm.lora_rank, c.lm.lora_alpha, tuple(c.lm.lora_targets))


def shaped(checkpoint: LMConfig, c: ConfigDict) -> LMConfig:
  """A checkpoint's shape with the settings that the run chooses."""
  return dataclasses.replace(checkpoint, compute_dtype=c.lm.compute_dtype, remat=c.lm.remat,
                             attention=c.lm.attention, lora=lora(c))


def reward(c: ConfigDict) -> RewardConfig:
  return RewardConfig(**c.reward.to_dict())


def search(c: ConfigDict) -> SearchConfig:
  s = c.search
  return SearchConfig(n_rollouts=s.rollouts, n_candidates=s.candidates, max_depth=s.max_depth,
                      exploration=s.exploration, backup=s.backup)


def step(c: ConfigDict) -> StepConfig:
  s = c.search
  return StepConfig(question_temperature=s.question_temperature, answer_temperature=s.answer_temperature,
                    top_p=s.top_p, alpha=s.alpha, salience_weight=s.salience_weight)


def grammar(c: ConfigDict) -> GrammarConfig:
  s = c.search
  return GrammarConfig(final_question=final_question(task(c)), max_depth=s.max_depth, max_features=c.reward.top_k,
                       question_tokens=s.question_tokens, answer_tokens=s.answer_tokens,
                       useful_question=f'<Useful> {USEFUL}')


def selection(c: ConfigDict) -> SelectionConfig:
  s = c.search
  return SelectionConfig(top_k=s.top_k, min_reward=s.min_reward, min_jaccard=s.min_jaccard, balance=s.balance)


def clip(c: ConfigDict) -> ClipConfig:
  return ClipConfig(high_min=c.rl.clip_min, high_max=c.rl.clip_max, scope=c.rl.clip_over)


def judge(c: ConfigDict) -> JudgeConfig:
  r = c.rl
  weights = reward(c) if r.lam is None else dataclasses.replace(reward(c), lam=r.lam)
  return JudgeConfig(reward=weights, clip=clip(c), advantage=r.advantage, dynamic_sampling=r.dynamic_sampling,
                     overlong_buffer=r.overlong_buffer, attention_reward=r.attention_reward)


def update(c: ConfigDict) -> UpdateConfig:
  r = c.rl
  return UpdateConfig(
      micro_batch=r.micro_batch, reduction=r.loss, eps_low=r.clip_low, dual_clip=r.dual_clip or None, kl_coef=r.kl,
      c_align=r.c_align, align=r.align, align_rows=r.align_rows, align_layers=tuple(r.align_layers),
      align_heads=tuple(r.align_heads),
      align_per_token=r.align_per_token, align_top_k=c.reward.top_k)


def optimizer(c: ConfigDict, stage: str, steps: int) -> OptimizerConfig:
  """AdamW of a training stage: warm-up within its first half, then its schedule down to a tenth."""
  s = c[stage]
  return _of_stage(stage, OptimizerConfig, learning_rate=s.learning_rate, total_steps=steps,
                   warmup_steps=min(s.warmup, steps // 2), schedule=s.schedule, end_fraction=0.1,
                   weight_decay=s.weight_decay)


def supervised(c: ConfigDict, stage: str, micro_batch: int) -> SupervisedConfig:
  """The loss of base or sft, `micro_batch` prompts at a time."""
  return _of_stage(stage, SupervisedConfig, micro_batch=micro_batch, prompt_loss=c[stage].get('prompt_loss', 0.0))


def _of_stage(stage: str, build: Callable[..., T], **fields) -> T:
  """Of a config that several stages have: what it refuses gets the stage's name."""
  try:
    return build(**fields)
  except EagrlError as e:
    raise EagrlError(f'{stage}.{e}') from e
