"""Fine-tunes the base policy on the trajectories that the search selected.

1. Read the selected trajectories (token ids, as the search wrote them).
2. `sft.epochs` passes, negative log-likelihood of the answer given the prompt; the tokens from
   `<Final answer>` on count `sft.answer_weight` times, or the reasoning drowns the one number.
   A pass is of whole batches: the patients beyond them, fewer than `sft.batch`, are left out,
   in every pass others, for each has an order of its own.
3. Save the policy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging

from eagrl_jax import mesh as mesh_lib
from eagrl_jax import rng
from eagrl_jax.lm.tokenizer import Tokenizer
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages import policy as policy_lib
from eagrl_jax.stages import supervised
from eagrl_jax.stages.context import Context
from eagrl_jax.stages.encode import Encoder, pad_answers
from eagrl_jax.train.supervised import SupervisedBatch
from eagrl_jax.types import EagrlError, made_again


def run(context: Context) -> None:
  data = data_lib.load(context)
  policy = policy_lib.load(context.folder('base'), context.mesh)
  c = context.config.sft
  answers = trajectories(context)
  if not answers:
    raise EagrlError('search kept no trajectory: lower search.min_reward or search.min_jaccard, or raise '
                     'search.patients')
  # The search decides how many patients there are: whole micro-batches of them, and no batch beyond.
  micro = min(c.micro_batch, len(answers))
  batch = min(c.batch, len(answers)) // micro * micro
  steps = c.epochs * (len(answers) // batch)
  logging.info('sft: %d trajectories of %d patients, %d steps', sum(map(len, answers.values())), len(answers), steps)
  encoder = data_lib.encoder(context, data, policy.tokenizer, policy.config)
  stream = lambda start: batches(context, encoder, answers, batch, start)
  params = supervised.fit(context, 'sft', policy, stream, steps, lambda step: micro)
  policy_lib.save(context.folder('sft'), dataclasses.replace(policy, params=params))


def trajectories(context: Context) -> dict[int, list[list[int]]]:
  """Tokens of the answers that the search selected, by row of the cohort.

  Raises:
    EagrlError: their table is missing or damaged.
  """
  path = context.folder('search') / 'trajectories' / 'trajectories.parquet'
  try:
    table = pq.read_table(path, columns=['row', 'tokens'])
  except (OSError, pa.ArrowException) as e:
    raise EagrlError(f'search/trajectories/{path.name} is missing or damaged; {made_again("search")}') from e
  answers: dict[int, list[list[int]]] = {}
  for row, tokens in zip(table['row'].to_pylist(), table['tokens'].to_pylist()):
    answers.setdefault(row, []).append(tokens)
  return answers


def batches(context: Context, encoder: Encoder, answers: dict[int, list[list[int]]], batch: int,
            start: int) -> Iterator[SupervisedBatch]:
  """Batches from step `start` on: a new permutation of the patients every epoch, features shuffled anew.

  All answers of a patient share one prompt; a patient with fewer than the others has empty ones.
  """
  rows = np.array(sorted(answers))
  seed, per_epoch = context.config.seed, len(rows) // batch
  group = max(map(len, answers.values()))
  width = -(-max(len(a) for mine in answers.values() for a in mine) // 16) * 16
  begins = {row: [final_answer(a, encoder.tokenizer) for a in mine] for row, mine in answers.items()}
  step = start
  while True:
    epoch, i = divmod(step, per_epoch)
    chosen = rng.host(seed, 'sft patients', epoch).permutation(rows)[i * batch:(i + 1) * batch]
    prompt = encoder.batch(chosen, (seed, 'sft order', step) if context.config.prompt.shuffle_features else None)
    ids = [answers[r] + [[]] * (group - len(answers[r])) for r in chosen.tolist()]
    tokens, valid = pad_answers(ids, encoder.tokenizer.pad_id, width)
    weight = np.ones(tokens.shape, np.float32)
    for b, row in enumerate(chosen.tolist()):
      for g, begin in enumerate(begins[row]):
        weight[b, g, begin:] = context.config.sft.answer_weight
    yield mesh_lib.shard_batch(context.mesh, SupervisedBatch(prompt, tokens, valid, weight))
    step += 1


def final_answer(ids: list[int], tokenizer: Tokenizer) -> int:
  """Position of the first token of `<Final answer>`; the length where there is none."""
  text, spans = tokenizer.decode_with_offsets(ids)
  begin = text.find('<Final answer>')
  return int(np.searchsorted(spans[:, 1], begin, side='right')) if begin >= 0 else len(ids)
