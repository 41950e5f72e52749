"""Tables that stages left, read back."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eagrl_jax.evaluation.files import flat, read_columns, read_json, read_lines
from eagrl_jax.stages import study_table
from eagrl_jax.types import EagrlError


def test_places_are_cut_to_their_last_part_in_what_is_shared():
  settings = {'data': {'path': '../ward7/events.csv', 'outcomes': 'ward7/died.csv', 'task': 'a/b', 'site': '/x/y'},
              'rl': {'rollouts': 'http://ward7:8000/v1'}, 'lm': {'checkpoint': 'Qwen/Qwen3'}}
  shared, own = ({key: text for key, text in flat(settings, share)} for share in (True, False))
  assert shared == {'data.path': 'events.csv', 'data.outcomes': 'died.csv', 'data.task': 'a/b', 'data.site': 'y',
                    'rl.rollouts': 'v1', 'lm.checkpoint': 'Qwen3'}
  assert own['data.path'] == '../ward7/events.csv' and own['rl.rollouts'] == 'http://ward7:8000/v1'


def test_columns_come_by_name_and_a_fault_names_run_and_stage(tmp_path):
  folder = tmp_path / 'seed_1' / 'evaluate'
  folder.mkdir(parents=True)
  path = folder / 'predictions.parquet'
  assert read_columns(path, 'arm') is None
  with pytest.raises(EagrlError, match=r'predictions\.parquet is gone; move evaluate away to make it again'):
    study_table.answered(folder, 'arm')
  pq.write_table(pa.table({'prob': [.5, .25], 'arm': ['a', 'b']}), path)
  (folder / 'done.json').touch()
  found = read_columns(path, 'arm', 'prob')
  assert list(found) == ['arm', 'prob'] and found['arm'].tolist() == ['a', 'b'] and found['prob'].tolist() == [.5, .25]
  said = (r'seed_1/evaluate/predictions\.parquet cannot be read; delete evaluate/done\.json and run the command that '
          'made it again')
  with pytest.raises(EagrlError, match=said):
    read_columns(path, 'label')
  path.write_bytes(path.read_bytes()[:40])
  with pytest.raises(EagrlError, match=said):
    read_columns(path, 'arm')


@pytest.mark.parametrize(('marks', 'fix'), [
    (('done.json', 'manifest.json'), r'delete eicu/done\.json and run the command that made it again'),
    (('manifest.json',), r'delete eicu/manifest\.json and run the command that made it again'),
    ((), 'run what writes it again')])
def test_the_mark_that_has_a_broken_file_kept_is_named(marks, fix, tmp_path):
  folder = tmp_path / 'eicu'
  folder.mkdir()
  for mark in marks:
    (folder / mark).touch()
  (folder / 'metrics.json').write_text('{')
  with pytest.raises(EagrlError, match=rf'^eicu/metrics\.json is not valid JSON; {fix}$'):
    read_json(folder / 'metrics.json')
  (folder / 'metrics.jsonl').write_text('{\n{}\n')
  # A stage that is done again only appends to it.
  with pytest.raises(EagrlError, match='line 1 is not valid JSON; move the file away'):
    read_lines(folder / 'metrics.jsonl')
