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
