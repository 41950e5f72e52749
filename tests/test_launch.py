"""The launch scripts, dry: what they would run is the same main."""

import pathlib
import subprocess

import pytest

LAUNCH = pathlib.Path(__file__).parents[1] / 'launch'
CASES = {'tpu_vm.sh': ['eagrl', 'us-west4-a', 'v5litepod-8', '/mnt/runs/a b'], 'slurm.sbatch': []}


def bash(*words):
  return subprocess.run(['bash', *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize('script', CASES)
def test_dry_run_prints_main_and_its_flags(script):
  result = bash(str(LAUNCH / script), '--dry_run', *CASES[script], '--config=configs/rl.py', '--config.rl.steps=3')
  assert result.returncode == 0, result.stderr
  assert '-m eagrl_jax.main' in result.stdout.replace('\\ ', ' ') and '--config.rl.steps=3' in result.stdout


@pytest.mark.parametrize('script', CASES)
def test_help_says_how(script):
  result = bash(str(LAUNCH / script), '--help')
  assert result.returncode == 0 and 'usage' in result.stdout.lower()


def test_missing_arguments_are_refused():
  assert bash(str(LAUNCH / 'tpu_vm.sh'), '--dry_run', 'name').returncode == 2
