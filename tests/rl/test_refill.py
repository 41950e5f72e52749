"""Groups that count take the places of those that do not."""

import jax
import numpy as np
import pytest

from eagrl_jax.rl.refill import refill
from eagrl_jax.rl.update import RLBatch
from eagrl_jax.types import PromptBatch, Rollout


def batch(examples, weight, width=4):
  n = len(examples)
  of = np.asarray(examples, np.int32)
  wide = lambda *shape: np.broadcast_to(of.reshape(n, *[1] * len(shape)), (n, *shape)).astype(np.float32)
  return RLBatch(
      prompt=PromptBatch(wide(width), np.ones((n, width), bool), wide(width), of),
      rollout=Rollout(wide(2, 3), np.ones((n, 2, 3), bool), wide(2, 3), wide(2, 3)), advantage=wide(2),
      eps_high=wide(2), weight=np.asarray(weight, np.float32), salience=wide(5), align_mask=wide(2, 3) > 0)


def test_places_are_filled_in_order_and_whole_groups_move():
  full = refill(batch([1, 2, 3], [0, 1, 0]), batch([4, 5, 6], [1, 0, 1]))
  np.testing.assert_array_equal(full.prompt.example, [2, 4, 6])
  jax.tree.map(np.testing.assert_array_equal, full, batch([2, 4, 6], [1, 1, 1]))


@pytest.mark.parametrize(('first', 'second'), [(4, 6), (6, 4)])
def test_prompts_of_two_widths_are_padded_on_the_left(first, second):
  full = refill(batch([1, 2], [0, 1], first), batch([3, 4], [1, 1], second)).prompt
  np.testing.assert_array_equal(full.example, [2, 3])
  for row, n, who in zip(range(2), (first, second), (2, 3)):
    assert full.valid[row].tolist() == [False] * (6 - n) + [True] * n
    assert full.tokens[row, 6 - n:].tolist() == full.feature[row, 6 - n:].tolist() == [who] * n
    assert full.feature[row, :6 - n].tolist() == [-1] * (6 - n)


def test_what_does_not_count_fills_the_rest():
  full = refill(batch([1, 2, 3], [0, 0, 1]), batch([4, 5, 6], [0, 1, 0]))
  np.testing.assert_array_equal(full.prompt.example, [3, 5, 1])
  np.testing.assert_array_equal(full.weight, [1, 1, 0])
