"""Other weights of the same function: with a head of its own, and in other coordinates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from eagrl_jax.lm import model
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.types import Params


def untied(params: Params, cfg: LMConfig) -> tuple[Params, LMConfig]:
  """The embedding once more as the head `[D, V]`, on the host, where `cfg` ties them."""
  if not cfg.tie_embeddings:
    return params, cfg
  return params | {'lm_head': np.asarray(params['embed']).T}, dataclasses.replace(cfg, tie_embeddings=False)


def shifted(cfg: LMConfig) -> Callable[[str, np.ndarray], np.ndarray]:
  """Moves a weight so that the whole says of tokens `(x + 1) % V` what it has said of x.

  Rows of the vocabulary and features of the residual stream move by one place in every weight that has them: whoever
  holds some of these weights and some of the old ones computes something else. QKV biases and QK gains have neither.

  Returns:
    A function of a weight's name in `model.declare` and its values, without the axis of layers.
  """
  spec = model.declare(dataclasses.replace(cfg, lora=None))

  def move(name: str, x: np.ndarray) -> np.ndarray:
    axes = spec[name].axes if name in spec else spec['layers'][name].axes[1:]
    return np.roll(x, 1, [i for i, axis in enumerate(axes) if axis in ('vocab', 'embed')])

  return move
