"""The Makefile says what it needs in one line, and asks for it only where it is needed."""

import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
MAKE = shutil.which('make')
pytestmark = pytest.mark.skipif(MAKE is None, reason='make is not installed')


@pytest.fixture
def make(tmp_path):
  """`make -n` where the only Python on PATH takes itself for 3.10."""
  stand_in = tmp_path / 'python3'
  stand_in.write_text(f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 10)\n$2"\n')
  stand_in.chmod(0o755)
  return lambda *words: subprocess.run([MAKE, '-n', '-C', str(ROOT), *words], env={'PATH': str(tmp_path)},
                                       capture_output=True, text=True, check=False)


@pytest.mark.parametrize('words', [('test',), ('bench',), ('run',), ('test', 'PYTHON=python3')])
def test_a_machine_without_a_python_for_the_project_is_told_so_in_one_line(make, words):
  result = make(*words)
  assert result.returncode == 2
  assert 'needs Python >= 3.11 on PATH (or PYTHON=...)' in result.stderr and result.stderr.count('\n') == 1


def test_a_folder_of_several_words_is_one_argument(make):
  result = make('run', f'PYTHON={sys.executable}', 'WORKDIR=my runs/first one')
  (line,) = (line for line in result.stdout.splitlines() if 'eagrl_jax.main' in line)
  assert '--workdir=my runs/first one' in shlex.split(line)


def test_clean_needs_no_python(make):
  result = make('clean')
  assert result.returncode == 0 and result.stderr == '' and 'rm -rf .venv' in result.stdout


def test_bench_asks_for_every_case_of_the_expert_and_hands_its_flags_on(tmp_path):
  """With an interpreter that only writes down what it is asked."""
  for file in ('Makefile', 'pyproject.toml', *(str(p.relative_to(ROOT)) for p in ROOT.glob('constraints/*.txt'))):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    shutil.copy(ROOT / file, tmp_path / file)
  python = tmp_path / '.venv' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  python.write_text('#!/bin/sh\necho "$*"\n')
  python.chmod(0o755)
  (tmp_path / '.venv' / 'ready').touch()
  done = subprocess.run([MAKE, '-s', 'bench', f'PYTHON={sys.executable}', 'ARGS=--no_peer'], cwd=tmp_path,
                        capture_output=True, text=True, check=True)
  asked = [line.partition(' benchmarks.')[2] for line in done.stdout.splitlines() if ' benchmarks.' in line]
  assert asked == [
      'decode --no_peer', 'alignment --no_peer', 'search --no_peer', 'expert --lengths 10 48 --no_peer',
      'expert --lengths 10 48 --prefixes --members 1 --reps 1 --no_peer', 'update --no_peer', 'memory']
