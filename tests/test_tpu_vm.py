"""launch/tpu_vm.sh with a program in gcloud's place: nothing is deleted unfetched, no request is left behind."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = pathlib.Path(__file__).parents[1] / 'launch' / 'tpu_vm.sh'
# Writes its call down; is stopped with its caller, fails or says the next state as the environment has it.
GCLOUD = r'''#!/usr/bin/env bash
printf '%q ' gcloud "$@" >>"$HERE/calls"; echo >>"$HERE/calls"
if [[ "$*" == *$SIGNAL_AT* ]]; then
  kill "-$SIGNAL" "$PPID"
  [[ "$*" == *' create '* ]] || { sleep .1; sleep 60; exit 1; }
fi
[[ "$*" == *$FAIL_AT* ]] && exit 7
case "$*" in *describe*) head -n 1 "$HERE/states"; sed -i '2,$!{$!d}' "$HERE/states";; esac
exit 0
'''
# A shell cannot trap what it was started to ignore, and these tests may be started by nohup.
HEARING = """import os, signal, sys
for each in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
  signal.signal(each, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])"""
# The wait between two looks is short; with SIGNAL_AT=waiting a signal comes during it.
SLEEP = r'''#!/usr/bin/env bash
[[ "$1" = 30 && "$SIGNAL_AT" = waiting ]] && kill "-$SIGNAL" "$PPID"
[[ "$1" = 30 ]] || exec /bin/sleep "$1"
'''
# Answers late, as on a busy machine: a command may start another child after the look and before its own end.
PGREP = f'''#!/bin/sh
{shutil.which('pgrep')} "$@"; code=$?
/bin/sleep .3
exit $code
'''


@pytest.fixture
def launch(tmp_path):
  """Runs the script; returns its result and its calls, each a list of words."""
  for name, text in {'gcloud': GCLOUD, 'sleep': SLEEP, 'pgrep': PGREP, 'git': '#!/bin/sh\n'}.items():
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)

  def run(*, states=('WAITING_FOR_RESOURCES', 'ACTIVE'), fail_at='nothing', signal_at='nothing', by=signal.SIGTERM):
    (tmp_path / 'states').write_text('\n'.join(states) + '\n')
    env = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'HERE': str(tmp_path), 'FAIL_AT': fail_at,
           'SIGNAL_AT': signal_at, 'SIGNAL': by.name.removeprefix('SIG')}
    result = subprocess.run(
        [sys.executable, '-c', HEARING, 'bash', str(SCRIPT), 'eagrl', 'us-west4-a', 'v5litepod-16', '/mnt/runs/a',
         '--config=configs/rl.py'], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    return result, [shlex.split(line) for line in (tmp_path / 'calls').read_text().splitlines()]
  return run


def verbs(calls):
  """What was asked of gcloud, in order; `ssh` by what it runs."""
  names = {'pkill': 'stop', 'mkdir -p eagrl': 'folder', 'mkdir -p /mnt/runs/a': 'workdir', 'uv venv': 'install',
           'eagrl_jax.main --distributed': 'run'}
  said = []
  for call in calls:
    verb = next(word for word in call if word in ('create', 'describe', 'delete', 'ssh', 'scp'))
    if verb == 'ssh':
      verb = next(name for part, name in names.items() if part in call[-1])
    if verb == 'scp':
      verb = 'results' if '--recurse' in call else 'log' if 'eagrl.log' in call else 'send'
    said.append(verb)
  return said


READY = ['create', 'describe', 'describe', 'folder', 'send', 'workdir', 'install', 'run']


def test_a_run_is_fetched_and_its_slice_deleted(launch):
  result, calls = launch()
  assert result.returncode == 0, result.stderr
  assert verbs(calls) == [*READY, 'results', 'log', 'delete']


def test_a_run_that_fails_is_fetched_before_its_slice_goes(launch):
  result, calls = launch(fail_at='eagrl_jax.main --distributed')
  assert result.returncode == 7
  assert verbs(calls) == [*READY, 'stop', 'results', 'log', 'delete']


@pytest.mark.parametrize('what', ['--recurse', 'eagrl.log'])
def test_what_cannot_be_fetched_keeps_the_slice(launch, what):
  result, calls = launch(fail_at=what)
  assert result.returncode == 1
  assert 'delete' not in verbs(calls)
  assert 'eagrl was kept' in result.stderr
  remaining = [shlex.split(line) for line in result.stderr.splitlines() if line.startswith('gcloud')]
  assert verbs(remaining) == ['results', 'log', 'delete']
  assert next(c for c in calls if '--recurse' in c) in remaining


def test_a_failed_run_whose_results_cannot_be_fetched_keeps_its_status(launch):
  result, calls = launch(fail_at='@(--recurse|main --distributed)')
  assert result.returncode == 7 and verbs(calls) == [*READY, 'stop', 'results']


def test_what_fails_before_the_run_leaves_nothing_to_fetch(launch):
  result, calls = launch(fail_at='mkdir -p /mnt/runs/a')
  assert result.returncode == 7 and verbs(calls)[-2:] == ['workdir', 'delete']


@pytest.mark.parametrize('state', ['FAILED', 'SUSPENDING', 'SUSPENDED'])
def test_a_request_that_gives_no_slice_is_ended_in_one_line(launch, state):
  result, calls = launch(states=['ACCEPTED', f'{state}\tno quota'])
  assert result.returncode == 1
  assert result.stderr == f'no slice: eagrl is {state}, no quota\n'
  assert verbs(calls) == ['create', 'describe', 'describe', 'delete']


def test_a_request_of_which_nothing_is_heard_is_given_up(launch):
  result, calls = launch(fail_at=' describe ')
  assert result.returncode == 1 and result.stderr == 'no slice: gcloud does not say what has become of eagrl\n'
  assert verbs(calls) == ['create', *['describe'] * 20, 'delete']


def test_a_request_that_is_refused_deletes_nothing(launch):
  """The name may be that of another's slice."""
  result, calls = launch(fail_at=' create ')
  assert result.returncode == 7 and verbs(calls) == ['create']


@pytest.mark.parametrize('by', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_waiting_deletes_the_request(launch, by):
  result, calls = launch(states=['ACCEPTED'], signal_at='waiting', by=by)
  assert result.returncode == (130 if by == signal.SIGINT else 143)
  assert verbs(calls) == ['create', 'describe', 'delete']


def test_a_signal_while_the_request_is_made_deletes_it(launch):
  result, calls = launch(signal_at=' create ')
  assert result.returncode == 143 and verbs(calls) == ['create', 'delete']


@pytest.mark.parametrize('by', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_run_stops_it_fetches_and_deletes(launch, by):
  start = time.monotonic()
  result, calls = launch(signal_at='eagrl_jax.main --distributed', by=by)
  assert time.monotonic() - start < 20  # not when the command would have ended
  assert result.returncode == (130 if by == signal.SIGINT else 143)
  assert verbs(calls) == [*READY, 'stop', 'results', 'log', 'delete']


def test_a_signal_during_the_fetch_keeps_the_slice(launch):
  result, calls = launch(signal_at='--recurse')
  assert result.returncode == 1 and 'eagrl was kept' in result.stderr
  assert verbs(calls) == [*READY, 'results']


def test_a_slice_that_could_not_be_deleted_is_named(launch):
  result, calls = launch(fail_at=' delete ')
  assert result.returncode == 1 and 'eagrl could not be deleted' in result.stderr
  assert shlex.split(result.stderr.splitlines()[-1]) == calls[-1]


def test_a_workdir_that_is_not_absolute_is_refused():
  """The run would write below eagrl/, the fetch look into the home."""
  result = subprocess.run(['bash', str(SCRIPT), '--dry_run', 'eagrl', 'us-west4-a', 'v5litepod-16', 'runs/first'],
                          capture_output=True, text=True, check=False)
  assert result.returncode == 2 and re.fullmatch(r'WORKDIR must be .*runs/first\n', result.stderr)
