"""What a signal does to a process that cannot look at it, in processes that are really ended."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from eagrl_jax.train import preemption

ROOT = pathlib.Path(__file__).parents[2]
ENV = os.environ | {'PYTHONPATH': str(ROOT)}
HEAD = '''
import os, signal, threading, time
from eagrl_jax.train import preemption
preemption.GRACE = 0.3
signal.signal(signal.SIGINT, signal.{interrupt})  # as in a terminal; whoever runs the tests may ignore it
preemption.listen({listen})
term = lambda: os.kill(os.getpid(), signal.SIGTERM)
'''


def call(body: str, listen: str = '', interrupt: str = 'default_int_handler') -> tuple[int, list[str], float]:
  """Exit status, lines on stderr, seconds."""
  begun = time.monotonic()
  program = HEAD.format(listen=listen, interrupt=interrupt) + body
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, env=ENV, timeout=60,
                        check=False)
  return done.returncode, done.stderr.splitlines(), time.monotonic() - begun


# Python's own lock is waited for by C code that a handler cannot leave as long as it does not raise.
STUCK = 'lock = threading.Lock(); lock.acquire(); lock.acquire()\n'


def test_a_process_that_never_asks_is_ended():
  assert call(f'preemption.defer(); term()\n{STUCK}')[:2] == (0, [preemption.LINE])


def test_one_of_several_that_wait_for_each_other_ends_at_once():
  body = f'preemption.GRACE = 600\nterm()\n{STUCK}'
  assert call(body, 'True')[:2] == (0, [preemption.LINE])
  assert call(body, 'True, False')[:2] == (0, [])  # another one speaks


def test_ctrl_c_ends_where_it_can_go_on_and_twice_at_once(tmp_path):
  body = '''
import sys
preemption.defer(); os.kill(os.getpid(), signal.SIGINT)
while not preemption.requested(): time.sleep(.01)
'''
  assert call(body + 'time.sleep(.1); preemption.say(); sys.exit(preemption.status())')[:2] == (
      130, [preemption.WAIT, preemption.LINE])
  twice = 'preemption.GRACE = 600\n' + body + f'time.sleep(.1); os.kill(os.getpid(), signal.SIGINT)\n{STUCK}'
  assert call(twice)[:2] == (130, [preemption.WAIT, preemption.LINE])
  assert call('assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN', interrupt='SIG_IGN')[0] == 0


def test_a_checkpoint_under_way_is_waited_for(tmp_path):
  body = f'''
preemption.defer(); term()
with preemption.saving():
  time.sleep(1.5)
  open({str(tmp_path / 'saved')!r}, 'w').close()
{STUCK}'''
  assert call(body)[:2] == (0, [preemption.LINE]) and (tmp_path / 'saved').exists()


def test_it_is_raised_once_where_nothing_is_deferred():
  body = '''
try:
  term()
  time.sleep(5)
except preemption.Preempted as error:
  term()  # again, while the first is dealt with
  try:
    raise ValueError('a library, cleaning up')
  except ValueError as late:
    assert preemption.explains(late) and preemption.explains(error) and not preemption.explains(ValueError())
  preemption.say(), preemption.say()
'''
  status, lines, seconds = call(body)
  assert (status, lines) == (0, [preemption.LINE]) and seconds < 5


def test_without_a_listener_a_signal_ends_the_process_as_ever():
  done = subprocess.run([sys.executable, '-c', 'import os, signal; import eagrl_jax.train.preemption as p; '
                         'os.kill(os.getpid(), signal.SIGTERM)'], env=ENV, check=False)
  assert done.returncode == -signal.SIGTERM


@pytest.mark.parametrize('state', [False, True])
def test_a_deferred_signal_is_asked_for(monkeypatch, state):
  monkeypatch.setattr(preemption._state, 'asked', state)
  assert preemption.requested() is state
