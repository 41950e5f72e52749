"""What a dry run says about sizes: parameters, tokens, and by `memory` the bytes a device."""

from __future__ import annotations

import math
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from eagrl_jax.lm import gguf_io, hf_io, lora, model
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.mesh import make_mesh
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages import memory, policy, settings
from eagrl_jax.stages.context import Context

FEATURES = {'synthetic': 20, 'tjh': 73, 'physionet2012': 39, 'mimic4': 17, 'yaib': 50,
            'csv': 50, 'wide_csv': 50, 'meds': 50}  # of a user's own files a guess: they are not read


def policy_shape(c: ConfigDict) -> LMConfig | None:
  """The policy's shape; None for a hub name, which a dry run does not download."""
  if c.lm.checkpoint == 'tiny':
    return settings.tiny(c)
  if c.lm.checkpoint.endswith('.gguf'):
    shape = gguf_io.read_config(c.lm.checkpoint)
  elif (found := hf_io.inspect(c.lm.checkpoint)) is not None:
    shape = found
  else:
    return None
  return settings.shaped(shape, c)


def prompt_tokens(c: ConfigDict) -> int:
  """Upper estimate of a prompt's length, in tokens, rounded up to the bucket."""
  visits = min(c.prompt.max_values, c.data.max_visits)
  features = FEATURES[c.data.source]
  estimate = 30 + features * (2 + 4 * visits) if c.prompt.style == 'compact' else 220 + features * (24 + 4 * visits)
  if c.prompt.max_characters:
    estimate = min(estimate, 220 + c.prompt.max_characters // 2)
  return math.ceil(estimate / c.prompt.bucket) * c.prompt.bucket


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
  prompt, how = (longest_prompt(run), 'as in this folder') if run else (prompt_tokens(c), 'estimated')
  sizes = memory.Sizes(prompt, FEATURES[c.data.source], trajectory_tokens(c))
  total = sum(x.size for x in jax.tree.leaves(model.abstract(lm)))
  trained = sum(x.size for x in jax.tree.leaves(lora.split(model.abstract(lm), lm)[0]))
  s, t, g = sizes.prompt, c.rl.max_new, c.rl.group
  yield f'policy: {total / 1e6:.1f} M parameters, {trained / 1e6:.1f} M of them trained, {mesh.size} device(s)'
  yield f'tokens: prompt {s} ({how}), answer up to {t}; one rl step holds {c.rl.prompts * (s + g * t)} tokens'
  yield f'search: {c.search.patients} patients in batches of {c.search.trees} trees of up to ' \
        f'{settings.search(c).n_nodes} nodes'
  room = device_bytes or memory.capacity()
  yield f'memory a device, MiB, of {room / 2**20:.0f}; each step is compiled for it:'
  if jax.default_backend() == 'cpu' and lm.compute_dtype == 'bfloat16':
    yield '  (a CPU widens bfloat16 products to float32: activations are up to three times those of a GPU or TPU)'
  for stage in memory.predict(c, lm, mesh, sizes):
    parts = ', '.join(f'{name} {size / 2**20:.1f}' for name, size in stage.parts.items())
    yield f'  {stage.name:10s} {stage.total / 2**20:10.1f}  = {parts}'
    if stage.total > memory.HEADROOM * room:
      yield f'  {stage.name} will not fit; {memory.advice(c, mesh, stage)}'


def longest_prompt(run: Context) -> int:
  """Width of the widest batch of prompts, from up to 512 patients of a run."""
  data = data_lib.load(run)
  encoder = data_lib.encoder(run, data, policy.tokenizer(run.folder('base')))
  rows = np.concatenate([data.splits.train, data.splits.test])
  return encoder.batch(rows[::max(1, len(rows) // 512)]).tokens.shape[1]


def trajectory_tokens(c: ConfigDict) -> int:
  """Upper estimate of a trajectory's length: its steps, and the grammar's own words."""
  step = c.search.question_tokens + c.search.answer_tokens + 16
  return 16 * math.ceil((step * c.search.max_depth + 4 * c.reward.top_k + 32) / 16)
