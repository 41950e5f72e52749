"""Starts real processes that meet on this machine's loopback, 4 CPU devices in all."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 600  # a run that hangs is a failure, not an endless test


def environment(processes: int) -> dict[str, str]:
  """Of one among so many processes; the port is free now and its own by the time the process starts."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  return os.environ | {
      'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(4 // processes),
      'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir or '', 'EAGRL_PYTHON': sys.executable,
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2', 'EAGRL_PORT': str(port), 'PYTHONPATH': str(ROOT)}


class Started:
  """Processes under way; `finish` waits for them."""

  def __init__(self, words: list[str], env: dict[str, str]):
    pipe = subprocess.PIPE
    self._process = subprocess.Popen(words, cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True)

  def finish(self) -> tuple[int, str, str]:
    """Exit status, stdout and stderr; of an abort, the lines that say why come again behind stacks and modules."""
    try:
      out, err = self._process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
      self._process.terminate()  # the launcher ends the processes that it started
      out, err = self._process.communicate()
    if self._process.returncode == 128 + signal.SIGABRT:
      err += '\n'.join(line[:1000] for line in err.splitlines() if re.match(r'[EF]\d{4} ', line))
    return self._process.returncode, out, err


@pytest.fixture(scope='session')
def start_main():
  """`(processes, *flags, python)`: the program, by the launcher when there are several processes."""
  def start(processes: int, *flags: str, python: str = sys.executable) -> Started:
    one = [python, '-m', 'eagrl_jax.main']
    several = ['bash', str(ROOT / 'launch' / 'local_processes.sh'), str(processes)]
    env = environment(processes) | {'EAGRL_PYTHON': python}
    return Started([*(one if processes == 1 else several), *flags], env)

  return start


@pytest.fixture(scope='session')
def run_script():
  """`(script, processes, *words)`: a script that is told the port, their number and its own; all must succeed."""
  def run(script: str, processes: int, *words: str) -> list[str]:
    env = environment(processes)
    numbers = lambda i: [env['EAGRL_PORT'], str(processes), str(i)]
    started = [Started([sys.executable, script, *numbers(i), *words], env) for i in range(processes)]
    ended = [s.finish() for s in started]
    assert all(status == 0 for status, _, _ in ended), '\n'.join(err[-1500:] for _, _, err in ended)
    # Of the CPU's collectives, which greet on stdout, nothing is kept.
    return ['\n'.join(line for line in out.splitlines() if 'Gloo' not in line) for _, out, _ in ended]

  return run
