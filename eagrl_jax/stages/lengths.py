"""How long prompts and answers get, against the positions that a checkpoint was made for."""

from __future__ import annotations

import math

from ml_collections import ConfigDict

from eagrl_jax.stages import programs
from eagrl_jax.types import EagrlError


def answer(c: ConfigDict) -> int:
  """Most tokens of an answer to a prompt of the run, sampled or by the search."""
  return max(c.rl.max_new, c.evaluate.max_new, trajectory(c))


def trajectory(c: ConfigDict, step: int = 0) -> int:
  """Upper estimate of an answer of steps of so many tokens (0 = the search's): these, the names, and the final step."""
  step = step or programs.step_tokens(c)
  return 16 * math.ceil((step * c.search.max_depth + 4 * c.reward.top_k + 32) / 16)


def excess(max_positions: int, prompt: int, answer: int) -> str:
  """A line where a prompt and an answer of so many tokens need more positions (0 = no limit), else ''."""
  if not max_positions or prompt + answer <= max_positions:
    return ''
  behind = f', behind a prompt of {prompt}' if prompt else ''
  return (f'lm.checkpoint was made for {max_positions} positions, and an answer takes up to {answer}{behind}; lower'
          ' prompt.max_values or prompt.max_characters, or rl.max_new, evaluate.max_new and search.max_depth')


def check(max_positions: int, prompt: int, answer: int) -> None:
  """Raises `EagrlError` for what `excess` tells."""
  if line := excess(max_positions, prompt, answer):
    raise EagrlError(line)
