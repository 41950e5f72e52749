"""A disk that is full and a file in the way: one line that names --workdir, and what was finished is used again."""

from __future__ import annotations

import errno
import json
import math
import os
import pathlib
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest

from eagrl_jax.stages import disk, graph, pipeline
from eagrl_jax.train.metrics import MetricWriter
from eagrl_jax.types import EagrlError

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = pathlib.Path(__file__).with_name('conftest.py')


@pytest.fixture
def prepared(finished, tmp_path):
  """A run whose next stage is base."""
  for stage in ('prepare', 'expert'):
    shutil.copytree(finished / stage, tmp_path / stage)
  return tmp_path


@pytest.fixture
def same(finished, monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT))
  from benchmarks.kills import differences
  return lambda workdir: differences(finished, workdir, ('prepare', 'expert', 'base')) == []


# Bytes that a file may have: the tokenizer, of 28 kB, has more than the one. The other is passed by a checkpoint's
# weights, 350 kB in two files or more, by how its writers happen to share them.
@pytest.mark.parametrize('limit', [2_000, 40_000])
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(limit, prepared, same, micro_config):
  """Every file of the process is kept short by the system; compiled programs come from no cache and go to none."""
  env = os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT), 'JAX_ENABLE_COMPILATION_CACHE': 'false'}
  ended = subprocess.run([sys.executable, __file__, str(limit), f'--config={CONFIG}', '--config.target=base',
                          f'--workdir={prepared}'],
                         cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
  said = [line for line in ended.stderr.splitlines() if line.startswith('eagrl_jax:')]
  assert ended.returncode == 1 and len(said) == 1 and 'Traceback' not in ended.stderr, ended.stderr
  assert f'--workdir={prepared} cannot be written: File too large' in said[0]
  assert 'run the same command again' in said[0]
  assert (limit == 40_000) == (prepared / 'base' / 'metrics.jsonl').exists()
  pipeline.run(micro_config(target='base'), prepared)
  assert same(prepared)


@pytest.mark.parametrize('name', ['base', 'base/checkpoints', 'base/metrics.jsonl'])
def test_something_in_the_way_is_one_line(name, prepared, same, micro_config):
  """A file where a folder belongs, or the other way round, which stops even an administrator."""
  config, place = micro_config(target='base'), prepared / name
  if name != 'base':
    place.parent.mkdir()
    disk.write_json(prepared / 'base' / 'started.json', {'hash': graph.stage_hashes(config)['base']})
  place.mkdir() if place.suffix else place.write_text('mine')
  with pytest.raises(EagrlError) as error:
    pipeline.run(config, prepared)
  text = str(error.value)
  assert text.startswith(f'--workdir={prepared} cannot be written: ') and f'({name}' in text and '\n' not in text
  place.rmdir() if place.suffix else place.unlink()  # it is still there
  pipeline.run(config, prepared)
  assert same(prepared)


def test_a_workdir_that_is_a_file(tmp_path, micro_config):
  (tmp_path / 'w').write_text('mine')
  with pytest.raises(EagrlError, match=r'--workdir=.*w cannot be written: File exists; make room'):
    pipeline.run(micro_config(target='base'), tmp_path / 'w')
  assert (tmp_path / 'w').read_text() == 'mine'


@pytest.mark.parametrize('writer', ['metrics', 'json', 'parquet'])
def test_a_disk_that_fills_up_in_any_writer(writer, tmp_path, monkeypatch, micro_config):
  """Each of them raises what the system says, which becomes the line."""
  full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def refuse(*_, **__):
    raise full

  import pyarrow.parquet as pq
  monkeypatch.setattr(*{'metrics': (MetricWriter, 'write'), 'json': (disk, 'write_json'),
                        'parquet': (pq, 'write_table')}[writer], refuse)
  config = micro_config(target='base')
  config.target = 'expert' if writer == 'metrics' else 'prepare'
  with pytest.raises(EagrlError, match=r'--workdir=.* cannot be written: No space left on device'):
    pipeline.run(config, tmp_path / 'w')


def test_a_folder_that_no_run_has_made_stays_where_it_is(tmp_path):
  (tmp_path / 'prepare').mkdir()
  assert disk.claim(tmp_path / 'prepare', 'one')  # empty, as a run leaves it that is killed at once
  (tmp_path / 'search').mkdir()
  (tmp_path / 'search' / 'thesis.docx').touch()
  with pytest.raises(EagrlError, match='holds a folder search that no run has made'):
    disk.claim(tmp_path / 'search', 'one')
  assert (tmp_path / 'search' / 'thesis.docx').exists()


@pytest.mark.parametrize('ending', [errno.ENOSPC, None])
def test_a_first_mark_that_was_cut_short_is_no_strangers(ending, tmp_path, monkeypatch):
  """By a full disk, which leaves nothing, or by a kill, which leaves half of it."""
  folder = tmp_path / 'expert'

  class Killed(BaseException):
    pass

  def cut(self, _):
    raise OSError(ending, os.strerror(ending)) if ending else Killed

  with monkeypatch.context() as m:
    m.setattr(pathlib.Path, 'replace', cut)
    with pytest.raises((OSError, Killed)):
      disk.claim(folder, 'one')
  assert [path.name for path in folder.iterdir()] == ([] if ending else ['started.part'])
  assert disk.claim(folder, 'one') and disk.read_hash(folder / 'started.json') == 'one'


@pytest.mark.parametrize('damage', [b'', b'\xff\xfe', b'[]', b'null', b'"hash"', b'{"hash": null}',
                                    b'{"hash": "../../up"}'])
def test_a_damaged_mark_is_none(damage, tmp_path):
  folder = tmp_path / 'base'
  assert disk.claim(folder, 'one')
  (folder / 'policy').mkdir()
  for name in ('started.json', 'done.json'):
    (folder / name).write_bytes(damage)
    assert disk.read_hash(folder / name) is None
  assert disk.claim(folder, 'one') and not (folder / 'policy').exists()
  (aside,) = (tmp_path / 'superseded').iterdir()
  assert aside.name.startswith('base-unknown-') and (aside / 'policy').exists()


def test_what_a_server_has_open_stays_when_a_stage_goes_on(tmp_path):
  folder = tmp_path / 'rl'
  assert disk.claim(folder, 'one')
  for name in ('rollouts', 'policy'):
    (folder / name).mkdir()
  assert disk.claim(folder, 'one')
  assert (folder / 'rollouts').exists() and not (folder / 'policy').exists()


def test_parts_stay_for_their_own_config_and_go_when_the_stage_is_done(tmp_path):
  folder = tmp_path / 'search'
  for digest, kept in (('one', False), ('one', True), ('two', False)):
    assert disk.claim(folder, digest) and (folder / 'parts' / '0.json').exists() == kept
    (folder / 'parts').mkdir(exist_ok=True)
    (folder / 'parts' / '0.json').write_text(digest)
  assert [p.read_text() for p in tmp_path.glob('superseded/search-one-*/parts/0.json')] == ['one']
  disk.finish(folder, {'hash': 'two'})
  assert not (folder / 'parts').exists()
  (folder / 'parts').mkdir()  # killed before they went
  assert not disk.claim(folder, 'two') and not (folder / 'parts').exists()


def test_what_is_not_finite_is_null_in_a_json_file(tmp_path):
  nan = float('nan')
  disk.write_json(tmp_path / 'x.json', {'sd': np.float64(nan), 'ci95': (nan, 1.5), 'rows': [{'p': -math.inf, 'n': 3}]})
  refuse = lambda word: pytest.fail(f'{word} is no JSON')
  found = json.loads((tmp_path / 'x.json').read_text(), parse_constant=refuse)
  assert found == {'sd': None, 'ci95': [None, 1.5], 'rows': [{'p': None, 'n': 3}]}


def test_a_users_own_file_is_not_blamed_on_the_folder(tmp_path):
  with pytest.raises(FileNotFoundError), disk.faults(tmp_path / 'w'):
    (tmp_path / 'absent.csv').read_text()


def test_a_file_of_a_finished_stage_that_is_gone_is_no_full_disk(tmp_path):
  with pytest.raises(EagrlError, match=r'cannot be written: No such file or directory \(rl/x\.json\)'), \
      disk.faults(tmp_path):
    (tmp_path / 'rl' / 'x.json').read_text()
  (tmp_path / 'rl').mkdir()
  (tmp_path / 'rl' / 'done.json').touch()
  said = r'rl/x\.json is missing; delete rl/done\.json and run the command that made it again'
  with pytest.raises(EagrlError, match=said), disk.faults(tmp_path):
    (tmp_path / 'rl' / 'x.json').read_text()


def main() -> None:
  from eagrl_jax import main as program
  limit = int(sys.argv.pop(1))
  real = pipeline._do_stage

  def limited(stage, *args):
    if stage.name == 'base':
      resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    real(stage, *args)

  pipeline._do_stage = limited
  program.run()


if __name__ == '__main__':
  main()
