"""Steps that are not finite: what stops a run, what is written down of them, and how they are counted."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from eagrl_jax.train import nonfinite
from eagrl_jax.train.nonfinite import Watch
from eagrl_jax.types import EagrlError

GOOD = {'loss': 1.0, 'finite': 1.0}
ROWS = np.array([7, 3])


def noted(folder):
  return [json.loads(line) for line in (folder / 'nonfinite.jsonl').read_text().splitlines()]


@pytest.mark.parametrize(('figures', 'what'), [
    ({'loss': math.nan}, ['loss']), ({'grad_norm': math.inf, 'loss': 1.0}, ['grad_norm']),
    ({'reward': -math.inf}, ['reward']), ({'loss': 1.0, 'finite': 0.0}, ['update'])])
def test_a_step_that_is_not_finite_stops_the_run(figures, what, tmp_path):
  watch = Watch(tmp_path, 'stop')
  assert watch.see(0, GOOD, ROWS) == GOOD
  with pytest.raises(EagrlError, match=r'step 1: .*not finite; its rows are in .*nonfinite\.jsonl.*nonfinite=skip'):
    watch.see(1, figures, ROWS)
  assert noted(tmp_path) == [{'step': 1, 'what': what, 'rows': [7, 3]}]


def test_skipped_steps_are_counted_and_many_in_a_row_stop_the_run(tmp_path):
  watch, bad = Watch(tmp_path, 'skip'), {'loss': math.nan}
  for step in range(nonfinite.MOST - 1):
    assert watch.see(step, bad, ROWS)['skipped'] == step + 1
  assert watch.see(9, GOOD, ROWS) == GOOD | {'skipped': 9.0}
  again = Watch(tmp_path, 'skip', 10, watch.position())
  for step in range(10, 19):
    again.see(step, bad, ROWS)
  resumed = Watch(tmp_path, 'skip', 19, again.position())
  with pytest.raises(EagrlError, match='step 19.*the last of 10 in a row'):
    resumed.see(19, bad, ROWS)
  assert [row['step'] for row in noted(tmp_path)] == [*range(9), *range(10, 20)]


def test_a_resumed_run_notes_a_step_once(tmp_path):
  watch = Watch(tmp_path, 'skip')
  for step in range(4):
    watch.see(step, {'finite': 0.0}, ROWS)
  Watch(tmp_path, 'skip', 2).see(2, {'finite': 0.0}, ROWS)
  assert [row['step'] for row in noted(tmp_path)] == [0, 1, 2]


def test_an_unknown_mode_is_refused():
  with pytest.raises(EagrlError, match="nonfinite='ignore' is unknown; choose one of stop, skip"):
    nonfinite.check('ignore')
