"""Kills a run at random moments, over and over, and compares what it leaves with what an undisturbed run leaves.

    python -m benchmarks.kills --kills 200 --seed 0

The smallest pipeline, every stage of it, in processes of its own. Each is killed (SIGKILL) a random time after it has
taken its folder, and started again, until one of them ends by itself. Then every file must be the same byte by byte,
seconds that were measured aside, and every weight bit by bit; the next run begins in an empty folder. Ends with status
1 at the first difference. A compile cache, filled by the undisturbed run, makes a start cheap.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Container
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from eagrl_jax.evaluation import pseudonyms

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = ROOT / 'tests' / 'multi_process' / 'small.py'
WEIGHTS = ('policy/params', 'members')  # folders of weights; Orbax notes the time in them
CLOCKS = ('done.json', 'started.json')
TIMES = ('seconds', 'with_compilation')
# Answers of the smallest policy cannot be parsed and all earn the same: without these its rl changes no weight, and of
# policies that validation patients cannot tell apart the first would be kept.
MOVING = ('--config.rl.align_rows=all', '--config.rl.dynamic_sampling=False', '--config.rl.warmup=0',
          '--config.rl.keep=last')


def share_salt(one: pathlib.Path, two: pathlib.Path) -> None:
  """Gives a new folder a finished run's secret, so that the pseudonyms of both are the same."""
  two.mkdir(exist_ok=True)
  shutil.copy(one / pseudonyms.FILE, two)


def differences(one: pathlib.Path, two: pathlib.Path, stages: Container[str] | None = None) -> list[str]:
  """Names of results that two folders do not share: a file missing on one side, other bytes, other weights.

  Args:
    one: a finished run.
    stages: which to look at; None = all that `one` finished.
  """
  found = []
  for stage in sorted(p.parent for p in one.glob('*/done.json') if stages is None or p.parent.name in stages):
    weights = {name for name in WEIGHTS if (stage / name).is_dir()}
    a, b = (_files(folder / stage.name, weights) for folder in (one, two))
    found += [f'{stage.name}/{name}' for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
    found += [f'{stage.name}/{name}' for name in sorted(weights)
              if not _same_weights(*(folder / stage.name / name for folder in (one, two)))]
  return found


def _files(stage: pathlib.Path, weights: set[str]) -> dict[str, bytes]:
  """Contents of a stage's results; neither checkpoints and parts, on the way to them, nor TensorBoard's events."""
  out = {}
  for path in stage.rglob('*'):
    name = path.relative_to(stage).as_posix()
    aside = name.startswith(('checkpoints', 'parts/', 'events.')) or any(name.startswith(f'{w}/') for w in weights)
    if path.is_file() and not aside and name not in CLOCKS:
      data = path.read_bytes()
      out[name] = json.dumps(_timeless(json.loads(data))).encode() if path.suffix == '.json' else data
  return out


def _timeless(content: Any) -> Any:
  """JSON without the seconds that somebody measured, and without whether compilation is in them."""
  if isinstance(content, dict):
    return {name: _timeless(value) for name, value in content.items() if name not in TIMES}
  return [_timeless(value) for value in content] if isinstance(content, list) else content


def _same_weights(one: pathlib.Path, two: pathlib.Path) -> bool:
  if not (one.is_dir() and two.is_dir()):
    return False
  a, b = map(_weights, (one, two))
  return jax.tree.structure(a) == jax.tree.structure(b) and all(
      x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def _weights(folder: pathlib.Path) -> Any:
  """The tree as numpy arrays, wherever it lay."""
  with ocp.PyTreeCheckpointer() as reader:
    shapes = reader.metadata(folder).item_metadata.tree
    return reader.restore(folder, restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), shapes))


@dataclasses.dataclass(frozen=True)
class Run:
  """One run that was killed `kills` times before it ended by itself."""

  kills: int
  stages: tuple[str, ...]  # each kill's: the stage under way
  failed: str = ''  # the last words of a process that neither ended well nor was killed


def one_run(start: Callable[[pathlib.Path], subprocess.Popen[str]], workdir: pathlib.Path, kills: int,
            generator: np.random.Generator, span: float) -> Run:
  """Starts a run again and again and kills it, at most `kills` times, until it ends by itself.

  Args:
    start: begins a process that works in the folder, its stderr piped.
    span: seconds from when the process has taken the folder, within which it is killed: early ones are likelier, of
      which a run takes more.
  """
  stages: list[str] = []
  while True:
    begun, mark = time.time_ns(), workdir / 'config.json'
    process = start(workdir)
    while process.poll() is None and not (mark.exists() and mark.stat().st_mtime_ns >= begun):
      time.sleep(0.005)
    try:
      _, said = process.communicate(timeout=span * generator.uniform()**2 if len(stages) < kills else None)
    except subprocess.TimeoutExpired:
      process.kill()
      process.communicate()
      under_way = [p.parent for p in workdir.glob('*/started.json') if not (p.parent / 'done.json').exists()]
      stages.append(under_way[0].name if under_way else 'between stages')
      continue
    return Run(len(stages), tuple(stages), '' if process.returncode == 0 else said[-2000:])


def starter(config: pathlib.Path, cache: pathlib.Path) -> Callable[[pathlib.Path], subprocess.Popen[str]]:
  """How a process begins. Compiling is most of the time and what is compiled runs for milliseconds."""
  env = os.environ | {
      'JAX_PLATFORMS': 'cpu', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1', 'JAX_COMPILATION_CACHE_DIR': str(cache),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0', 'PYTHONPATH': str(ROOT)}
  words = [sys.executable, '-m', 'eagrl_jax.main', f'--config={config}', *MOVING]
  return lambda workdir: subprocess.Popen([*words, f'--workdir={workdir}'], cwd=ROOT, env=env,
                                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--kills', type=int, default=200, help='so many at least; the run under way is finished')
  parser.add_argument('--seed', type=int, default=0, help='of the moments')
  parser.add_argument('--config', type=pathlib.Path, default=CONFIG)
  parser.add_argument('--cache', type=pathlib.Path, help='compile cache to keep; default: one that is thrown away')
  words = parser.parse_args()
  generator, kills, runs, bad = np.random.default_rng(words.seed), 0, 0, list[str]()
  by_stage: collections.Counter[str] = collections.Counter()
  with tempfile.TemporaryDirectory() as folder:
    reference, workdir = pathlib.Path(folder, 'undisturbed'), pathlib.Path(folder, 'killed')
    start = starter(words.config, words.cache or pathlib.Path(folder, 'cache'))
    for _ in range(2):  # the second finds everything compiled: its work is what the moments are spread over
      shutil.rmtree(reference, ignore_errors=True)
      if failed := one_run(start, reference, 0, generator, 0.0).failed:
        sys.exit(f'the undisturbed run failed:\n{failed}')
    if _same_weights(reference / 'sft' / 'policy' / 'params', reference / 'rl' / 'policy' / 'params'):
      sys.exit('rl changes no weight: this config shows nothing')
    span = sum(json.loads(p.read_text())['seconds'] for p in reference.glob('*/done.json'))
    while kills < words.kills and not bad:
      shutil.rmtree(workdir, ignore_errors=True)
      share_salt(reference, workdir)
      run = one_run(start, workdir, words.kills - kills, generator, span)
      kills, runs = kills + run.kills, runs + 1
      by_stage.update(run.stages)
      bad = [run.failed] if run.failed else differences(reference, workdir)
      print(json.dumps({'kills': kills, 'runs': runs, 'killed_in': dict(by_stage), 'span_s': round(span, 1),
                        'differences': bad}), flush=True)
  sys.exit(bool(bad))


if __name__ == '__main__':
  main()
