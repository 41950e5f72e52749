"""Makes the policy that the method starts from.

1. `tiny`: train a tokenizer on the rendered train patients, initialise a small decoder.
   Otherwise: load the checkpoint.
2. Train on rule-written answers (`ehr.warmup`), reading and format, no outcome: `base.short_steps`
   steps on records of a few features, `base.steps` on whole ones.
3. Save the policy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from absl import logging

from eagrl_jax import rng
from eagrl_jax.ehr import warmup
from eagrl_jax.lm import induction, model
from eagrl_jax.lm.tokenizer import train_tokenizer
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages import lessons, settings, supervised
from eagrl_jax.stages import policy as policy_lib
from eagrl_jax.stages.context import Context
from eagrl_jax.train import processes
from eagrl_jax.types import EagrlError


def run(context: Context) -> None:
  data = data_lib.load(context)
  policy = initial_policy(context, data)
  c = context.config.base
  if steps := c.short_steps + c.steps:
    encoder = data_lib.encoder(context, data, policy.tokenizer, policy.config)
    stream = lambda start: lessons.batches(context, encoder, data.splits.train, start)
    micro = lambda step: c.short_micro_batch if step < c.short_steps else c.micro_batch
    params = supervised.fit(context, 'base', policy, stream, steps, micro)
    policy = dataclasses.replace(policy, params=params)
  policy_lib.save(context.folder('base'), policy)


def initial_policy(context: Context, data: data_lib.Data) -> policy_lib.Policy:
  """The `tiny` decoder with a tokenizer of its own, or the checkpoint of `lm.checkpoint`."""
  lm = context.config.lm
  if lm.checkpoint != 'tiny':
    shape, vocabulary = policy_lib.read_head(context.config)
    parts = data.splits
    data_lib.encoder(context, data, vocabulary, shape).check(np.concatenate([parts.train, parts.valid, parts.test]))
    return policy_lib.load_pretrained(context.config, context.mesh, rng.stage_key(context.config.seed, 'base'))
  words = context.folder('base') / 'policy' / 'tokenizer'
  names = data.cohort.features.names
  processes.first(lambda: train_tokenizer(corpus(context, data), names, lm.vocab_size).save(words))
  tokenizer = policy_lib.tokenizer(context.folder('base'))
  shape = dataclasses.replace(settings.tiny(context.config), vocab_size=tokenizer.vocab_size)
  shardings = model.param_shardings(shape, context.mesh)
  key = rng.stage_key(context.config.seed, 'base')
  params = jax.jit(lambda k: induction.look_back(model.init(shape, k), shape), out_shardings=shardings)(key)
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
    values, visible = prompt.shown, [f for f, _, _ in prompt.spans]
    generator = rng.host(c.seed, 'base corpus', int(row))
    answer = warmup.write_answer(data.cohort.features, values, visible, settings.task(c), c.reward.top_k,
                                 c.search.max_depth, generator, encoder.censor(int(row))).text
    drills = [write(data.cohort.features, values, visible, generator).text
              for write in (warmup.write_findings, warmup.write_usefulness)]
    yield '\n'.join([prompt.text, answer, *drills])
