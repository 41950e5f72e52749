"""Makes the policy that the method starts from.

1. `tiny`: train a tokenizer on the rendered train patients, initialise a small decoder.
   Otherwise: load the checkpoint.
2. Train `base.steps` steps on rule-written answers (`ehr.warmup`): reading and format, no outcome.
3. Save the policy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from absl import logging

from eagrl_jax import mesh as mesh_lib
from eagrl_jax import rng
from eagrl_jax.ehr import warmup
from eagrl_jax.lm import model
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.tokenizer import train_tokenizer
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages import policy as policy_lib
from eagrl_jax.stages import supervised
from eagrl_jax.stages.context import Context
from eagrl_jax.stages.encode import Encoder, pad_answers
from eagrl_jax.train.supervised import SupervisedBatch
from eagrl_jax.types import EagrlError


def run(context: Context) -> None:
  data = data_lib.load(context)
  policy = initial_policy(context, data)
  c = context.config.base
  if c.steps:
    encoder = data_lib.encoder(context, data, policy.tokenizer)
    stream = lambda start: batches(context, encoder, data.splits.train, start)
    params = supervised.fit(context, 'base', policy, stream, c, c.steps)
    policy = dataclasses.replace(policy, params=params)
  policy_lib.save(context.folder('base'), policy)


def initial_policy(context: Context, data: data_lib.Data) -> policy_lib.Policy:
  """The `tiny` decoder with a tokenizer of its own, or the checkpoint of `lm.checkpoint`."""
  lm = context.config.lm
  if lm.checkpoint != 'tiny':
    policy = policy_lib.load_pretrained(lm)
    shardings = model.param_shardings(policy.config, context.mesh)
    return dataclasses.replace(policy, params=jax.tree.map(jax.device_put, policy.params, shardings))
  tokenizer = train_tokenizer(corpus(context, data), data.cohort.features.names, lm.vocab_size)
  shape = LMConfig(vocab_size=tokenizer.vocab_size, d_model=lm.d_model, n_layers=lm.n_layers, n_heads=lm.n_heads,
                   n_kv_heads=lm.n_kv_heads, head_dim=lm.head_dim, d_ff=lm.d_ff, compute_dtype=lm.compute_dtype,
                   remat=lm.remat)
  shardings = model.param_shardings(shape, context.mesh)
  key = rng.stage_key(context.config.seed, 'base')
  params = jax.jit(lambda k: model.init(shape, k), out_shardings=shardings)(key)
  count = sum(x.size for x in jax.tree.leaves(params))
  logging.info('tiny policy: %.1f M parameters, vocabulary %d', count / 1e6, tokenizer.vocab_size)
  return policy_lib.Policy(params, shape, tokenizer)


def corpus(context: Context, data: data_lib.Data) -> Iterator[str]:
  """Prompts and rule-written answers of the train patients, for the tokenizer."""
  c = context.config
  encoder = data_lib.encoder(context, data, tokenizer=None)
  for row in data.splits.train:
    prompt = encoder.prompt(int(row))
    if not prompt.spans:
      raise EagrlError('prompt.max_characters leaves no feature line; raise it')
    values, visible = data.visits.values[row][data.visits.valid[row]], [f for f, _, _ in prompt.spans]
    generator = np.random.default_rng((c.seed, int(row)))
    answer = warmup.write_answer(data.cohort.features, values, visible, data.cohort.task, c.reward.top_k,
                                 c.search.max_depth, generator)
    drills = [write(data.cohort.features, values, visible, generator)
              for write in (warmup.write_findings, warmup.write_usefulness)]
    yield '\n'.join([prompt.text, answer, *drills])


def texts(encoder: Encoder, row: int, visible: list[int] | None, answers: int,
          generator: np.random.Generator) -> list[list[int]]:
  """Token ids of `answers` rule-written answers to a patient's prompt, and of the two drills.

  Args:
    visible: features that the prompt shows; None = all that were measured.
  """
  features, tokenizer = encoder.cohort.features, encoder.tokenizer
  values = encoder.visits.values[row][encoder.visits.valid[row]]
  if visible is None:
    visible = np.flatnonzero(~np.isnan(values).all(0)).tolist()
  written = [warmup.write_answer(features, values, visible, encoder.cohort.task, encoder.config.top_k,
                                 encoder.config.max_depth, generator) for _ in range(answers)]
  drills = [write(features, values, visible, generator) for write in (warmup.write_findings, warmup.write_usefulness)]
  return [[*tokenizer.encode(t), tokenizer.eos_id] for t in written] + [tokenizer.encode(t) for t in drills]


def batches(context: Context, encoder: Encoder, rows: np.ndarray, start: int) -> Iterator[SupervisedBatch]:
  """Endless batches from step `start` on; each is a function of (seed, step) alone."""
  c, seed, tokenizer = context.config.base, context.config.seed, encoder.tokenizer
  sample = [texts(encoder, int(r), None, 1, np.random.default_rng((seed, 0, int(r)))) for r in rows[:128]]
  # One width for all batches, so that the step compiles once; the longest of a sample.
  width = -(-max(len(t) for group in sample for t in group) // 16) * 16
  step = start
  while True:
    generator = np.random.default_rng((seed, 1, step))
    chosen = generator.choice(rows, size=c.batch, replace=len(rows) < c.batch)
    prompt = encoder.batch(chosen, (seed, step) if context.config.prompt.shuffle_features else None)
    ids = [texts(encoder, int(row), [int(f) for f in np.unique(shown) if f >= 0], c.answers, generator)
           for row, shown in zip(chosen, prompt.feature)]
    tokens, valid = pad_answers(ids, tokenizer.pad_id, width)
    yield mesh_lib.shard_batch(context.mesh, SupervisedBatch(prompt, tokens, valid, valid.astype(np.float32)))
    step += 1
