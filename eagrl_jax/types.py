"""The letters used in every shape comment, and the array types shared by several layers.

    N  patients of a cohort; of a decoder, attention heads
    B  patients of a batch                      G  group: samples of one prompt
    F  clinical features                        C  channels of the expert's input; of a search, candidates (siblings)
    T  query positions / visits                 S  key positions / prompt tokens; of a search, slots of a step
    K  key-value heads; of answers, top K       H  head dimension; of the expert, hidden width; hours of a record
    L  layers                                   D  model width
    V  vocabulary                               E  ensemble members
    A  static facts (age, sex)                  M  tree nodes
    R  rows taken together: B x C of a search, resamples of a bootstrap
    P  written names, spellings of features, or steps of a path
    Q  states of the grammar                    W  edges of a state, or tokens of a spelling

Prompts are padded on the left, answers on the right: the last prompt column is a
real token for every row, so the first answer token is always predicted from it.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import struct

Array = jax.Array
ArrayLike = jax.Array | np.ndarray
Params = Any  # a pytree of arrays


class EagrlError(Exception):
  """A mistake in the user's input or config: one line that names the field and the fix.

  `main` prints it without a traceback and exits with status 1. The text never
  contains a patient's value or identifier.
  """


def made_again(stage: str, mark: str = 'done.json') -> str:
  """The fix for a file of a finished stage that is missing or damaged: without its mark the stage is not skipped."""
  return f'delete {stage}/{mark} and run the command that made it again'


@struct.dataclass
class PromptBatch:
  """Left-padded prompts with the token span of every feature."""

  tokens: ArrayLike  # [B, S] int32
  valid: ArrayLike  # [B, S] bool, False on the left padding
  feature: ArrayLike  # [B, S] int32, the feature a token renders, -1 where none
  example: ArrayLike  # [B] int32, row of the cohort: the identity used by every random key


@struct.dataclass
class Rollout:
  """G sampled answers to each prompt, as the sampler wrote them."""

  tokens: ArrayLike  # [B, G, T] int32, right-padded
  valid: ArrayLike  # [B, G, T] bool, True up to and including the end token
  logprobs: ArrayLike  # [B, G, T] float32, log p(token) at temperature 1
  entropy: ArrayLike  # [B, G, T] float32, of the next-token distribution at temperature 1


@struct.dataclass
class ExpertBatch:
  """What the expert sees of B patients."""

  values: ArrayLike  # [B, T, C] float32, forward-filled: z-scored, or 0 and 1 of a level's channel (`ehr.channels`)
  observed: ArrayLike  # [B, T, C] float32, 1 where the channel's feature was measured at that visit
  valid: ArrayLike  # [B, T] bool, real visits (padding is on the right)
  hours: ArrayLike  # [B, T] float32, hours since the first record
  static: ArrayLike  # [B, A] float32
  label: ArrayLike  # [B] float32
