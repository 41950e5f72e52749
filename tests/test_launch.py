"""The launch scripts, dry: what they would run is the same main."""

import pathlib
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml
from packaging.specifiers import SpecifierSet

LAUNCH = pathlib.Path(__file__).parents[1] / 'launch'
CASES = {'tpu_vm.sh': ['eagrl', 'us-west4-a', 'v5litepod-16', '/mnt/runs/a b'], 'slurm.sbatch': [],
         'local_processes.sh': ['3']}


def bash(*words):
  return subprocess.run(['bash', *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize('script', CASES)
def test_dry_run_prints_main_and_its_flags(script):
  result = bash(str(LAUNCH / script), '--dry_run', *CASES[script], '--config=configs/rl.py', '--config.rl.steps=3')
  assert result.returncode == 0, result.stderr
  said = result.stdout.replace('\\ ', ' ')
  assert '-m eagrl_jax.main --distributed' in said and '--config.rl.steps=3' in said


@pytest.mark.parametrize('script', CASES)
def test_help_says_how(script):
  result = bash(str(LAUNCH / script), '--help')
  assert result.returncode == 0 and 'usage' in result.stdout.lower()


@pytest.mark.parametrize(('script', 'words'), [('tpu_vm.sh', ['name']), ('local_processes.sh', ['--config=x'])])
def test_missing_arguments_are_refused(script, words):
  assert bash(str(LAUNCH / script), '--dry_run', *words).returncode == 2


def test_each_local_process_is_told_who_it_is():
  result = bash(str(LAUNCH / 'local_processes.sh'), '--dry_run', '3')
  commands = [line.split() for line in result.stdout.splitlines()]
  assert [c[-1] for c in commands] == [f'--process={i}' for i in range(3)]
  assert all('--processes=3' in c for c in commands)
  assert len({w for c in commands for w in c if w.startswith('--coordinator=')}) == 1


def test_one_failing_process_ends_the_others(tmp_path):
  """A stand-in for python: process 0 would sleep for a minute, process 1 fails."""
  stand_in = tmp_path / 'python'
  stand_in.write_text('#!/bin/sh\ncase "$*" in *--process=1*) exit 3;; esac\nexec sleep 60\n')
  stand_in.chmod(0o755)
  result = subprocess.run(['bash', str(LAUNCH / 'local_processes.sh'), '2'], env={
      'PATH': '/usr/bin:/bin', 'EAGRL_PYTHON': str(stand_in)}, capture_output=True, timeout=30, check=False)
  assert result.returncode == 3


def test_sky_runs_main_on_every_node(tmp_path):
  """Its commands, with main replaced by `echo`."""
  task = yaml.safe_load((LAUNCH / 'sky.yaml').read_text())
  (tmp_path / '.venv' / 'bin').mkdir(parents=True)
  (tmp_path / '.venv' / 'bin' / 'python').symlink_to(shutil.which('echo') or '/bin/echo')
  env = {**task['envs'], 'SKYPILOT_NODE_IPS': '10.0.0.1\n10.0.0.2', 'SKYPILOT_NUM_NODES': '2',
         'SKYPILOT_NODE_RANK': '1', 'FLAGS': '--config=configs/rl.py --config.rl.steps=3', 'PATH': '/usr/bin:/bin'}
  result = subprocess.run(['bash', '-c', task['run']], cwd=tmp_path, env=env, capture_output=True, text=True,
                          check=True)
  assert result.stdout.split() == [
      '-m', 'eagrl_jax.main', '--distributed', '--coordinator=10.0.0.1:8476', '--processes=2', '--process=1',
      '--workdir=runs/first', '--config=configs/rl.py', '--config.rl.steps=3']


def test_slurm_gives_each_process_the_cpus_of_the_job(monkeypatch):
  """srun has not inherited them since Slurm 22.05."""
  monkeypatch.setenv('SLURM_CPUS_PER_TASK', '6')
  assert ' --cpus-per-task=6 ' in bash(str(LAUNCH / 'slurm.sbatch'), '--dry_run').stdout
  monkeypatch.delenv('SLURM_CPUS_PER_TASK')
  default = re.search(r'^#SBATCH (--cpus-per-task=\d+)$', (LAUNCH / 'slurm.sbatch').read_text(), re.M)[1]
  assert f' {default} ' in bash(str(LAUNCH / 'slurm.sbatch'), '--dry_run').stdout


@pytest.mark.parametrize('script', ['tpu_vm.sh', 'sky.yaml'])
def test_a_cloud_machine_gets_a_python_that_the_project_takes(script):
  """Whatever its own: TPU images have 3.10."""
  text = (LAUNCH / script).read_text()
  root = LAUNCH.parent
  takes = SpecifierSet(tomllib.loads((root / 'pyproject.toml').read_text())['project']['requires-python'])
  major, minor = re.search(r'-m uv venv .*--python (\d+)\.(\d+)', text).groups()
  assert f'{major}.{minor}' in takes
  constraints = re.search(r'-m uv pip install .*--python \.venv/bin/python -c (\S+)', text)[1]
  assert constraints == f'constraints/py{major}{minor}.txt' and (root / constraints).exists()
  assert '-m venv' not in text


def test_sky_can_be_set_up_again(tmp_path):
  """A second `sky launch` finds the environment of the first, which uv refuses to make again unless told."""
  stand_in = tmp_path / 'python3'
  stand_in.write_text('#!/bin/sh\necho "$@"\n')
  stand_in.chmod(0o755)
  setup = yaml.safe_load((LAUNCH / 'sky.yaml').read_text())['setup']
  result = subprocess.run(['bash', '-c', setup], env={'PATH': f'{tmp_path}:/usr/bin:/bin'}, capture_output=True,
                          text=True, check=True)
  commands = result.stdout.splitlines()
  assert [c.split()[1] for c in commands] == ['pip', 'uv', 'uv'] and '--allow-existing' in commands[1]


@pytest.mark.skipif(shutil.which('shellcheck') is None, reason='shellcheck is not installed')
def test_shellcheck_is_clean(tmp_path):
  inner = tmp_path / 'sky.sh'
  task = yaml.safe_load((LAUNCH / 'sky.yaml').read_text())
  inner.write_text('#!/usr/bin/env bash\n' + task['setup'] + task['run'])
  result = subprocess.run(['shellcheck', *map(str, [*LAUNCH.glob('*.sh'), LAUNCH / 'slurm.sbatch', inner])],
                          capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stdout
