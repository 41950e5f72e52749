"""An initialisation that looks one token back, for decoders trained from scratch.

Reading a value by its name takes two layers: one that tells each token what stands before it,
one that finds the token before which the wanted name stands (induction, Olsson et al. 2022,
arXiv 2209.11895). A small decoder finds the first half by chance, after a plateau of very
different length from seed to seed. Here it is given, as structure in the initial weights
(Trockman and Kolter 2023, arXiv 2305.09828, do so for other patterns); training may change it.
"""

from __future__ import annotations

import numpy as np

from eagrl_jax.lm import rope
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.types import Params

CONSTANT = 4.0  # of residual feature 0, in units of an embedding's standard deviation
PAIRS = 4  # rotary pairs of the highest frequencies: one position apart is already far
STRENGTH = 10.0  # of the constant part of a query or key beside its random part, whose deviation is 1
SHARPNESS = 1.5  # of the layer's keys, where they are normed
OUTPUT = 10.0  # how much louder the head writes than the others


def look_back(params: Params, cfg: LMConfig) -> Params:
  """Freshly initialised weights in which head 0 of layer 0 attends to the token before each token.

  Every token gets the same residual feature 0, from which that head's query and key take a constant whose
  rotations agree best at a distance of one.
  """
  turn = rope.frequencies(cfg)[:PAIRS]
  query, key = np.zeros((2, cfg.head_dim), np.float32)
  query[:len(turn)] = 1
  key[:len(turn)], key[cfg.head_dim // 2:][:len(turn)] = np.cos(turn), np.sin(turn)
  scale = STRENGTH / CONSTANT
  layers = params['layers'] | {
      'wq': params['layers']['wq'].at[0, 0, 0].set(scale * query),
      'wk': params['layers']['wk'].at[0, 0, 0].set(scale * key),
      'wo': params['layers']['wo'].at[0, 0].multiply(OUTPUT),
  }
  if cfg.qk_norm:
    layers['k_norm'] = layers['k_norm'].at[0].multiply(SHARPNESS)
  embed = params['embed'].at[:, 0].set(CONSTANT * cfg.d_model**-0.5)
  return params | {'layers': layers, 'embed': embed}
