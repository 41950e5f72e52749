"""What a dry run says about sizes: parameters, tokens, and by `memory` the bytes a device."""

from __future__ import annotations

import math
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from eagrl_jax.ehr import warmup
from eagrl_jax.ehr.sources import (
  mimic4_features,
  physionet2012_features,
  synthetic_features,
  tjh_features,
  yaib_features,
)
from eagrl_jax.lm import gguf_io, hf_io, lora, model
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.mesh import make_mesh
from eagrl_jax.stages import advice, lengths, lessons, memory, policy, programs, settings
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages.context import Context

FEATURES = {'synthetic': len(synthetic_features.DEFAULT_FEATURES), 'tjh': len(tjh_features.FEATURES),
            'physionet2012': len(physionet2012_features.FEATURES), 'mimic4': len(mimic4_features.FEATURES),
            'yaib': len(yaib_features.FEATURES),
            'csv': 50, 'wide_csv': 50, 'meds': 50}  # of a user's own files a guess: they are not read
READ = 20  # tokens of a rule-written question and what the record says to it: 17 of SmolLM2's


def policy_shape(c: ConfigDict) -> LMConfig | None:
  """The policy's shape; None for a hub name that is still to be downloaded."""
  if c.lm.checkpoint == 'tiny':
    return settings.tiny(c)
  if c.lm.checkpoint.endswith('.gguf'):
    shape = gguf_io.read_config(c.lm.checkpoint)
  elif (found := hf_io.inspect(c.lm.checkpoint)) is not None:
    shape = found
  else:
    return None
  return settings.shaped(shape, c)


def prompt_tokens(c: ConfigDict, shown: int, visits: int, bucket: int) -> int:
  """Upper estimate of the length of a prompt that shows so many features and values of each, up to the bucket."""
  estimate = 30 + shown * (2 + 4 * visits) if c.prompt.style == 'compact' else (
      220 + shown * (24 + 4 * visits) + 5 * (FEATURES[c.data.source] - shown))  # full names what is absent
  if c.prompt.max_characters:
    estimate = min(estimate, 220 + c.prompt.max_characters // 2)
  return math.ceil(estimate / bucket) * bucket


def taught(c: ConfigDict, prompt: int) -> dict[str, programs.Lesson]:
  """What the base stage is taught (`stages.lessons`), by the field of its micro-batch; upper estimates of lengths.

  Args:
    prompt: tokens of a whole record's.
  """
  b, count = c.base, FEATURES[c.data.source]
  findings = lambda listed: 16 * math.ceil((16 + 5 * listed) / 16)
  found = {}
  if b.short_steps:
    short = prompt_tokens(c, min(b.short_features, count), 1, lessons.SHORT_BUCKET)
    found['base.short_micro_batch'] = programs.Lesson(b.short_batch, b.short_micro_batch, 1, short,
                                                      findings(warmup.ASKED))
  if b.steps:
    longest = max(lengths.trajectory(c, READ + programs.STEP_TAGS), findings(min(warmup.DRILL, count)))
    found['base.micro_batch'] = programs.Lesson(b.batch, b.micro_batch, b.answers + len(lessons.DRILLS), prompt,
                                                longest)
  return found


def lines(c: ConfigDict, device_bytes: int = 0, run: Context | None = None) -> Iterator[str]:
  """Lines for the terminal, each as soon as it is known.

  Args:
    device_bytes: memory of a device; 0 asks the one that is there.
    run: a folder whose cohort and tokenizer are there already: prompts are measured, not estimated.
  """
  lm = policy_shape(c)
  if lm is None:
    yield f'lm.checkpoint={c.lm.checkpoint!r} is a hub name: its sizes are known after the first download'
    return
  mesh = make_mesh(**c.mesh.to_dict())
  count = FEATURES[c.data.source]
  prompt, how = (longest_prompt(run), 'as in this folder') if run else (
      prompt_tokens(c, count, min(c.prompt.max_values, c.data.max_visits), c.prompt.bucket), 'estimated')
  sizes = programs.Sizes(prompt, count, lengths.trajectory(c), taught(c, prompt))
  total = sum(x.size for x in jax.tree.leaves(model.abstract(lm)))
  trained = sum(x.size for x in jax.tree.leaves(lora.split(model.abstract(lm), lm)[0]))
  s, t, g = sizes.prompt, c.rl.max_new, c.rl.group
  yield f'policy: {total / 1e6:.1f} M parameters, {trained / 1e6:.1f} M of them trained, {mesh.size} device(s)'
  yield f'tokens: prompt {s} ({how}), answer up to {t}; one rl step holds {c.rl.prompts * (s + g * t)} tokens'
  if c.rl.validate_every:
    times, asked = -(-c.rl.steps // c.rl.validate_every) + 1, c.rl.validate_patients or 'all'
    yield f'rl: {c.rl.steps} rollouts of {c.rl.prompts} patients, and {times} times {asked} validation patients'
  if line := lengths.excess(lm.max_positions, s, lengths.answer(c)):
    yield f'  {line}'
  yield f'search: {c.search.patients} patients in batches of {c.search.trees} trees of up to ' \
        f'{settings.search(c).n_nodes} nodes'
  room = device_bytes or memory.capacity()
  yield f'memory a device, MiB, of {room / 2**20:.0f}; each step is compiled for it:'
  if jax.default_backend() == 'cpu' and lm.compute_dtype == 'bfloat16':
    yield '  (a CPU widens bfloat16 products to float32: activations are up to three times those of a GPU or TPU)'
  for moment in memory.predict(c, lm, mesh, sizes, bool(device_bytes)):
    parts = ', '.join(f'{name} {size / 2**20:.1f}' for name, size in moment.parts.items() if size)
    yield f'  {moment.stage:10s} {moment.total / 2**20:10.1f}  = {parts}'
    if moment.total > memory.HEADROOM * room:
      yield f'  {moment.stage} will not fit; {advice.advice(c, lm, mesh, moment)}'


def longest_prompt(run: Context) -> int:
  """Width of the widest batch of prompts, from up to 512 patients of a run."""
  data = data_lib.load(run)
  encoder = data_lib.encoder(run, data, policy.tokenizer(run.folder('base')))
  rows = np.concatenate([data.splits.train, data.splits.valid, data.splits.test])
  return encoder.batch(rows[::max(1, len(rows) // 512)]).tokens.shape[1]
