"""The batches of the base stage: short records first, then whole ones.

A small decoder learns to look a feature up once it has had to: from records of two to
four features, whose values are scattered so that a name does not tell its flag, and whose
flags are asked for in any order and more than once. On whole records alone it learns each
feature's usual flag instead and reads nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from eagrl_jax import mesh as mesh_lib
from eagrl_jax import rng
from eagrl_jax.ehr import warmup
from eagrl_jax.ehr.warmup import Exercise
from eagrl_jax.lm.tokenizer import Tokenizer
from eagrl_jax.stages.context import Context
from eagrl_jax.stages.encode import Encoder, pad_answers
from eagrl_jax.train.supervised import SupervisedBatch

SHORT_BUCKET = 64  # prompts of short records are padded to a multiple of it
DRILLS = (warmup.write_findings, warmup.write_findings, warmup.write_usefulness)  # beside the answers to a whole record


def batches(context: Context, encoder: Encoder, rows: np.ndarray, start: int) -> Iterator[SupervisedBatch]:
  """Endless batches from step `start` on; each is a function of (seed, step) alone."""
  c, seed = context.config.base, context.config.seed
  shuffle = context.config.prompt.shuffle_features
  short = short_encoder(encoder)
  # One width a lesson, so that the step compiles twice at most; the longest of a sample.
  sample, generator = rows[:128], rng.host(seed, 'base width')
  short_width = _width(short_lesson(short, sample, rng.host(seed, 'base width'), c)[1], encoder.tokenizer)
  whole_width = _width([exercises(encoder, row, r, generator, c.answers)
                        for row, r in zip(sample, whole_records(encoder, sample, generator, c))], encoder.tokenizer)
  step = start
  while True:
    brief = step < c.short_steps
    count = c.short_batch if brief else c.batch
    order = (seed, 'base order', step) if shuffle else None
    generator = rng.host(seed, 'base lesson', step)
    chosen = generator.choice(rows, size=count, replace=len(rows) < count)
    if brief:
      records, texts = short_lesson(short, chosen, generator, c)
      prompt = short.batch(chosen, order, records)
    else:
      records = whole_records(encoder, chosen, generator, c)
      prompt = encoder.batch(chosen, order, records)
      texts = [exercises(encoder, row, record, generator, c.answers) for row, record in zip(chosen, records)]
    tokens, valid, weight = collate(texts, encoder.tokenizer, short_width if brief else whole_width, c.read_weight)
    yield mesh_lib.shard_batch(context.mesh, SupervisedBatch(prompt, tokens, valid, weight))
    step += 1


def short_encoder(encoder: Encoder) -> Encoder:
  """Writes the last value of a feature only."""
  return dataclasses.replace(encoder, config=dataclasses.replace(encoder.config, max_values=1), bucket=SHORT_BUCKET)


def short_lesson(encoder: Encoder, chosen: np.ndarray, generator: np.random.Generator,
                 c: ConfigDict) -> tuple[list[np.ndarray], list[list[Exercise]]]:
  """Records of two or a few features with scattered values, and their flags. `-> records [B], texts [B][1]`."""
  features, records, texts = encoder.cohort.features, [], []
  scattered = warmup.scatter(features, encoder.visits.values[chosen], generator)
  for values, real in zip(scattered, encoder.visits.valid[chosen]):
    record, kept = some_features(values[real], int(generator.integers(2, c.short_features + 1)), generator)
    records.append(record)
    texts.append([warmup.write_flags(features, record, kept, generator)])
  return records, texts


def some_features(values: np.ndarray, count: int, generator: np.random.Generator) -> tuple[np.ndarray, list[int]]:
  """A record with `count` of its measured features, drawn at random. `[T, F] -> [T, F], ids`."""
  kept = generator.permutation(measured(values))[:count]
  record = np.full_like(values, np.nan)
  record[:, kept] = values[:, kept]
  return record, kept.tolist()


def measured(record: np.ndarray) -> list[int]:
  """Features with a value. `[T, F] -> ids`."""
  return np.flatnonzero(~np.isnan(record).all(0)).tolist()


def whole_records(encoder: Encoder, chosen: np.ndarray, generator: np.random.Generator,
                  c: ConfigDict) -> list[np.ndarray]:
  """A share of the records is scattered, and these are of all lengths from the short lesson's to the whole.

  They are the bridge, without which looking up among many features is learned anew. `-> [B]` of [T, F].
  """
  values, count = encoder.visits.values[chosen], round(c.scattered * len(chosen))
  values[:count] = warmup.scatter(encoder.cohort.features, values[:count], generator)
  records = [v[real] for v, real in zip(values, encoder.visits.valid[chosen])]
  most = len(encoder.cohort.features)
  for i in range(count):
    length = int(generator.integers(min(c.short_features, most), most + 1))
    records[i], _ = some_features(records[i], length, generator)
  return records


def exercises(encoder: Encoder, row: int, record: np.ndarray, generator: np.random.Generator,
              count: int) -> list[Exercise]:
  """`count` rule-written answers to a patient's record, and three drills: of what its prompt shows and nothing else."""
  features, censor = encoder.cohort.features, encoder.censor(row, record)
  record = encoder.prompt(row, values=record).shown
  visible = measured(record)
  written = [warmup.write_answer(features, record, visible, encoder.config.task, encoder.config.top_k,
                                 encoder.config.max_depth, generator, censor) for _ in range(count)]
  return written + [write(features, record, visible, generator) for write in DRILLS]


def collate(texts: list[list[Exercise]], tokenizer: Tokenizer, width: int,
            read_weight: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """`[B][G]` exercises -> tokens, validity and weight in the loss, each `[B, G, T]`, T a multiple of `width`.

  A token weighs 1, `read_weight` where the record decides it, 0 where the policy is handed it.
  """
  encoded = [[encode(exercise, tokenizer, read_weight) for exercise in group] for group in texts]
  tokens, valid = pad_answers([[ids for ids, _ in group] for group in encoded], tokenizer.pad_id, width)
  weight = np.zeros(tokens.shape, np.float32)
  for b, group in enumerate(encoded):
    for g, (_, weights) in enumerate(group):
      weight[b, g, :len(weights)] = weights
  return tokens, valid, weight


def encode(exercise: Exercise, tokenizer: Tokenizer, read_weight: float) -> tuple[list[int], list[float]]:
  """Token ids, the end token included, and their weights."""
  ids, offsets = tokenizer.encode_with_offsets(exercise.text, continues=True)
  weights = [0.0 if stop <= exercise.given else
             read_weight if any(stop > a and start < b for a, b in exercise.read) else 1.0 for start, stop in offsets]
  return ([*ids, tokenizer.eos_id], [*weights, 1.0]) if exercise.ends else (ids, weights)


def _width(texts: list[list[Exercise]], tokenizer: Tokenizer) -> int:
  return -(-max(len(encode(e, tokenizer, 1)[0]) for group in texts for e in group) // 16) * 16
