"""The benchmark of a policy update runs and prints what it promises; its figures are not judged here."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest

from eagrl_jax.lm.config import LMConfig, LoraConfig

ROOT = pathlib.Path(__file__).parents[1]
MICRO = LMConfig(vocab_size=31, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=16)


@pytest.fixture
def update(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT))
  from benchmarks import measure, update
  monkeypatch.setitem(measure.SHAPES, 'micro', MICRO)
  return update


def test_one_line_a_case(update, monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['update', '--no_peer', '--shape=micro', '--prompts=2', '--group=2', '--length=6',
                                    '--new=3', '--reps=1', '--peak_tflops=2'])
  update.main()
  lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [line['unit'] for line in lines] == ['s', 's', 's', 'tokens/s']
  plain, scored, aligned, alone = lines
  assert plain['ratio'] is scored['ratio'] is alone['ratio'] is None
  assert aligned['peer'] == plain['ours'] and aligned['ratio'] > 0
  assert all(0 < line['rollout_s'] + line['update_s'] < line['ours'] for line in lines[:3])
  # A share of the given peak: 24 tokens an update, and 3 of its FLOPs for 1 of the rollout's.
  rollout, whole = update.flops(MICRO, update.Work(2, 2, 6, 3))
  assert whole == 3 * rollout
  assert alone['ours'] == pytest.approx(24 / plain['update_s'], rel=1e-3)
  assert alone['mfu'] == pytest.approx(whole / plain['update_s'] / 2e12, rel=1e-3)


def test_flops_by_hand(update):
  work = update.Work(prompts=2, group=3, length=4, new=5)
  layer = 2 * (16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 16)  # q, k and v, o, mlp
  tokens, answers = 2 * 4 + 6 * 5, 6 * 5
  pairs = 2 * 4 * 4 / 2 + answers * (4 + 5 / 2)
  weights, attention = layer * tokens + 2 * 31 * 16 * answers, 2 * 2 * 16 * pairs
  assert update.flops(MICRO, work) == (weights + attention, 3 * weights + 3 * attention)
  # Frozen weights have no gradient of their own; what passes through them does.
  adapters = dataclasses.replace(MICRO, lora=LoraConfig(2, 4.0, ('q_proj',)))
  assert update.flops(adapters, work)[1] == 2 * weights + 3 * attention


def test_a_peer_that_is_absent_is_named(update, monkeypatch):
  monkeypatch.setattr(update, 'PEERS', {'no_such_peer': 'its-package'})
  monkeypatch.setattr(sys, 'argv', ['update', '--peer=no_such_peer'])
  with pytest.raises(SystemExit, match='pip install its-package'):
    update.main()


def test_an_answer_of_another_length_is_no_comparison(update):
  with pytest.raises(SystemExit, match='answers of \\[2, 3\\] tokens, not 3'):
    update.complete([3, 2, 3], update.Work(1, 3, 4, 3))


@pytest.mark.parametrize(('flag', 'status', 'says'), [('--help', 0, 'usage: bash benchmarks/gpu.sh'),
                                                      ('--collect', 1, 'usage'), ('--fast', 2, 'unknown flag --fast')])
def test_the_gpu_script_says_how(flag, status, says):
  script = str(ROOT / 'benchmarks' / 'gpu.sh')
  done = subprocess.run(['bash', script, flag], capture_output=True, text=True, check=False)
  assert done.returncode == status and says in done.stdout + done.stderr


@pytest.fixture
def gpu_script(tmp_path):
  """Runs it in `tmp_path`, with an interpreter that only writes down what it is asked."""
  python = tmp_path / 'python'
  python.write_text('#!/bin/sh\ncat > /dev/null\n[ "$1" != -m ] || echo "$*"\n')
  python.chmod(0o755)

  def run(*words, **env):
    env = os.environ | {'PYTHON': './python', 'SITE': '.', 'SHAPES': 'qwen2.5-1.5b'} | env
    return subprocess.run(['bash', ROOT / 'benchmarks' / 'gpu.sh', *words], cwd=tmp_path, env=env, capture_output=True,
                          text=True, stdin=subprocess.DEVNULL, check=True)

  return run


def test_the_gpu_script_gives_every_case_its_type_and_shape(gpu_script):
  done = gpu_script('out', SHAPES='qwen2.5-1.5b qwen2.5-7b')
  asked = [line.split() for line in done.stdout.splitlines()]
  assert [(line[1], line[3]) for line in asked] == [
      (f'benchmarks.{case}', shape) for shape in ('qwen2.5-1.5b', 'qwen2.5-7b')
      for case in ('decode', 'update', 'search')]
  assert all('--compute_dtype bfloat16' in ' '.join(line) for line in asked)


def test_the_gpu_script_loses_no_figures(gpu_script, tmp_path):
  """It adds to the file of its caller's folder, and a smoke run has one of its own."""
  (tmp_path / 'results.jsonl').write_text('before\n')
  first, smoke, second = gpu_script(), gpu_script('--smoke'), gpu_script(CASES='decode')
  assert (tmp_path / 'results.jsonl').read_text() == 'before\n' + first.stdout + second.stdout
  assert (tmp_path / 'smoke.jsonl').read_text() == smoke.stdout and smoke.stdout.count('--shape micro') == 3
  (tmp_path / 'inner').mkdir()
  gpu_script('inner/mine.jsonl', CASES='decode')
  assert (tmp_path / 'inner' / 'mine.jsonl').read_text() == second.stdout


def test_the_gpu_script_runs_this_checkouts_benchmarks_from_anywhere(tmp_path):
  (tmp_path / 'benchmarks').mkdir()
  (tmp_path / 'benchmarks' / '__init__.py').write_text('raise SystemExit("another project")')
  script, env = ROOT / 'benchmarks' / 'gpu.sh', os.environ | {'PYTHON': sys.executable, 'CASES': 'decode'}
  done = subprocess.run(['bash', script, '--smoke'], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
  assert json.loads(done.stdout)['unit'] == 'tokens/s' and (tmp_path / 'smoke.jsonl').read_text() == done.stdout
