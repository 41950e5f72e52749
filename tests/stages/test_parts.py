"""Work batch by batch: what is kept of it, what of that is used again, and when it stops."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from eagrl_jax.stages import parts
from eagrl_jax.train import preemption
from eagrl_jax.train.progress import Progress

ROWS = np.array([7, 3, 9, 1, 4])


@dataclasses.dataclass(frozen=True)
class Doubled:
  rows: list[int]
  twice: list[float]


@pytest.fixture
def start(tmp_path):
  """`(kind, rows, size, dies_at) -> (what came out, the batches that were worked on)`."""

  def run(rows=ROWS, size=2, dies_at=None, folder=tmp_path / 'a' / 'parts'):
    worked = []

    def work(part):
      if len(worked) == dies_at:
        raise KeyboardInterrupt
      worked.append(part.tolist())
      return Doubled(part.tolist(), (part / 3).tolist())

    with Progress('x', len(rows)) as progress:
      try:
        done = parts.in_turn(folder, Doubled, rows, size, work, progress)
      except KeyboardInterrupt:
        done = None
    return done, worked

  return run


def test_it_goes_on_with_the_batch_that_was_cut_off(start):
  whole, _ = start(folder=None)
  assert [batch.rows for batch in whole] == [[7, 3], [9, 1], [4]]
  assert start(dies_at=2) == (None, [[7, 3], [9, 1]])
  done, worked = start()
  assert done == whole and worked == [[4]]
  assert start() == (whole, [])  # killed behind the last one


def test_nothing_is_kept_without_a_folder(start, tmp_path):
  start(folder=None)
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('other', ['null', '[1]', '{"rows": [9, 1]}', '{"rows": [9, 2], "twice": [1, 2]}', '{',
                                   '{"rows": [9, 1], "twice": [1, 2], "more": 3}'])
def test_a_broken_file_and_those_behind_it_are_made_again(start, tmp_path, other):
  whole, _ = start()
  (tmp_path / 'a' / 'parts' / '1.json').write_text(other)
  assert start() == (whole, [[9, 1], [4]])


def test_batches_of_other_patients_or_of_another_size_are_made_again(start):
  start()
  assert start(size=3)[1] == [[7, 3, 9], [1, 4]]
  assert start(size=3, rows=ROWS[::-1])[1] == [[4, 1, 9], [3, 7]]
  assert start(size=3, rows=ROWS[:1:-1])[1] == []  # all there is of it is there


def test_it_ends_when_it_is_told_to_with_the_batch_kept(start, monkeypatch):
  monkeypatch.setattr(preemption, 'requested', lambda: True)
  with pytest.raises(preemption.Preempted):
    start()
  monkeypatch.undo()
  assert start()[1] == [[9, 1], [4]]


def test_what_was_done_before_does_not_count_as_speed(monkeypatch):
  lines = []
  monkeypatch.setattr('eagrl_jax.train.progress.logging.info', lambda text, *args: lines.append(text % args))
  now = [0.0]
  monkeypatch.setattr('eagrl_jax.train.progress.time.monotonic', lambda: now[0])
  with Progress('x', 100) as progress:
    progress.skip(80)
    now[0] = 20.0
    progress.update(10)
  assert lines == ['x 90/100  (20 s left)']
