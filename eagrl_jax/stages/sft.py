"""Fine-tunes the base policy on the trajectories that the search selected.

1. Read the selected trajectories (token ids, as the search wrote them).
2. `sft.epochs` passes, negative log-likelihood of the answer given the prompt.
3. Save the policy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pyarrow.parquet as pq
from absl import logging

from eagrl_jax import mesh as mesh_lib
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages import policy as policy_lib
from eagrl_jax.stages import supervised
from eagrl_jax.stages.context import Context
from eagrl_jax.stages.encode import Encoder, pad_answers
from eagrl_jax.train.supervised import SupervisedBatch
from eagrl_jax.types import EagrlError


def run(context: Context) -> None:
  data = data_lib.load(context)
  policy = policy_lib.load(context.folder('base'), context.mesh)
  c = context.config.sft
  table = pq.read_table(context.folder('search') / 'trajectories' / 'trajectories.parquet')
  rows, tokens = np.array(table['row'].to_pylist(), np.int64), table['tokens'].to_pylist()
  if not len(rows):
    raise EagrlError('search kept no trajectory: lower search.min_reward or search.min_jaccard, or raise '
                     'search.patients')
  batch = min(c.batch, len(rows))
  steps = c.epochs * (len(rows) // batch)
  logging.info('sft: %d trajectories of %d patients, %d steps', len(rows), len(np.unique(rows)), steps)
  encoder = data_lib.encoder(context, data, policy.tokenizer)
  stream = lambda start: batches(context, encoder, rows, tokens, batch, start)
  params = supervised.fit(context, 'sft', policy, stream, c, steps)
  policy_lib.save(context.folder('sft'), dataclasses.replace(policy, params=params))


def batches(context: Context, encoder: Encoder, rows: np.ndarray, tokens: list[list[int]], batch: int,
            start: int) -> Iterator[SupervisedBatch]:
  """Batches from step `start` on: a new permutation every epoch, features shuffled anew."""
  seed, per_epoch = context.config.seed, len(rows) // batch
  width = -(-max(map(len, tokens)) // 16) * 16
  step = start
  while True:
    epoch, i = divmod(step, per_epoch)
    order = np.random.default_rng((seed, 2, epoch)).permutation(len(rows))[i * batch:(i + 1) * batch]
    prompt = encoder.batch(rows[order], (seed, 2, step) if context.config.prompt.shuffle_features else None)
    answers, valid = pad_answers([[tokens[j]] for j in order], encoder.tokenizer.pad_id, width)
    yield mesh_lib.shard_batch(context.mesh, SupervisedBatch(prompt, answers, valid, valid.astype(np.float32)))
    step += 1
