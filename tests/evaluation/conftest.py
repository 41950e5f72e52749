"""Makes the golden scripts, the fixtures of tests/ehr and the made-up run importable by name; that run and its page."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / 'golden'), str(HERE.parent / 'ehr')]


@pytest.fixture(scope='session')
def run(tmp_path_factory):
  """A folder with everything that a run can leave behind."""
  from made_up_run import fake_run, go_further
  root = fake_run(tmp_path_factory.mktemp('run'))
  go_further(root)
  return root


@pytest.fixture(scope='session')
def html(run):
  from eagrl_jax.evaluation import report
  return report.write_report(run).read_text(encoding='utf-8')
