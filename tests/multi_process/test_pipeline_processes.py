"""A run by 2 processes is the run by 1, up to the order in which floats are added; one of them speaks."""

from __future__ import annotations

import collections
import http.server
import json
import pathlib
import shutil
import threading

import jax
import numpy as np
import optax
import pyarrow.parquet as pq
import pytest
from safetensors import numpy as numpy_files

from eagrl_jax.evaluation import pseudonyms
from eagrl_jax.mesh import make_mesh
from eagrl_jax.stages import graph, policy
from eagrl_jax.train import checkpoint, state
from eagrl_jax.train.optimizer import OptimizerConfig, make_optimizer
from eagrl_jax.types import Params

CONFIG = f'--config={pathlib.Path(__file__).parent / "small.py"}'
STAGES = graph.NAMES[:graph.NAMES.index('evaluate') + 1]


@pytest.fixture(scope='module')
def runs(start_main, tmp_path_factory):
  """Folder and stderr of the whole run by 1 process on 4 devices, and by 2 on 2 each."""
  folder = tmp_path_factory.mktemp('runs')
  started = {n: start_main(n, CONFIG, f'--workdir={folder / str(n)}') for n in (1, 2)}
  ended = {n: s.finish() for n, s in started.items()}
  for status, _, err in ended.values():
    assert status == 0, err[-3000:]
  return {n: (folder / str(n), ended[n][1], ended[n][2]) for n in ended}


def near(one, two):
  """Equal structure; numbers to 1e-5, which is the tests' tolerance between one device and many."""
  if isinstance(one, dict):
    assert list(one) == list(two)
    for name in one:
      if name != 'seconds':  # measured
        near(one[name], two[name])
  elif isinstance(one, list):
    assert len(one) == len(two)
    for a, b in zip(one, two):
      near(a, b)
  elif isinstance(one, float):
    np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-5)
  else:
    assert one == two


def metrics(folder: pathlib.Path, stage: str) -> list[dict]:
  return [json.loads(line) for line in (folder / stage / 'metrics.jsonl').read_text().splitlines()]


def test_the_weights_are_the_same(runs):
  for stage in policy.POLICIES:
    one, two = (jax.tree.leaves(policy.load(w / stage, make_mesh()).params) for w, _, _ in runs.values())
    for a, b in zip(one, two, strict=True):
      np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


def test_what_is_perturbed_is_answered_the_same(runs, start_main):
  """Robustness is judged on a finished run; what was done before is not done again."""
  flags = ['--config.target=robustness', '--config.robustness.kinds=("noise","order")',
           '--config.robustness.patients=6', '--config.robustness.samples=1']
  started = [start_main(n, CONFIG, *flags, f'--workdir={folder}') for n, (folder, _, _) in runs.items()]
  for status, _, err in (s.finish() for s in started):
    assert status == 0 and 'rl: done before, skipped' in err, err[-3000:]
  near(*[json.loads((folder / 'robustness' / 'metrics.json').read_text()) for folder, _, _ in runs.values()])


class Server(http.server.ThreadingHTTPServer):
  """Answers as vLLM does, with tokens that depend on the prompt and the seed alone."""

  def __init__(self, folder: pathlib.Path):
    super().__init__(('127.0.0.1', 0), Handler)
    self.root, self.asked = str(folder / 'rl' / 'rollouts'), []
    threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    self.reply({'data': [{'id': 'policy', 'root': self.server.root}]})

  def do_POST(self):
    body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
    if self.path != '/v1/completions':
      return self.reply({'results': [None]})
    if 'prompt_logprobs' in body:  # of what is in the folder, and of the same when tokens and features have moved
      embed = numpy_files.load_file(pathlib.Path(self.server.root) / 'model.safetensors')['model.embed_tokens.weight']
      lengths = np.linalg.norm(np.asarray(embed, np.float32), axis=-1)
      return self.reply({'choices': [{'prompt_logprobs': [None] + [
          {str(i): {'logprob': -float(lengths[i])}} for i in body['prompt'][1:]]}]})
    self.server.asked.append(json.dumps(body, sort_keys=True))
    rng = np.random.default_rng([body['seed'], *body['prompt']])
    words = sorted(set(body['prompt']) - set(body['stop_token_ids']))
    return self.reply({'choices': [
        {'index': g, 'token_ids': rng.choice(words, body['max_tokens']).tolist(), 'finish_reason': 'length',
         'prompt_token_ids': body['prompt'], 'logprobs': {'token_logprobs': [-2.0] * body['max_tokens']}}
        for g in range(body['n'])]})

  def reply(self, content):
    data = json.dumps(content).encode()
    self.send_response(200)
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    self.wfile.write(data)

  def log_message(self, *words):
    pass


def test_a_server_is_asked_by_one_and_heard_by_all(runs, start_main, tmp_path):
  flags = ['--config.target=rl', '--config.rl.align_rows=all', '--config.rl.dynamic_sampling=False',
           '--config.rl.warmup=0', '--config.rl.keep=last']  # its answers all earn the same: the alignment alone trains
  servers, started = [], []
  for n, (folder, _, _) in runs.items():
    shutil.copytree(folder, tmp_path / str(n))
    servers.append(Server(tmp_path / str(n)))
    started.append(start_main(n, CONFIG, *flags, f'--config.rl.rollouts=http://127.0.0.1:{servers[-1].server_port}/v1',
                              f'--workdir={tmp_path / str(n)}'))
  for status, _, err in (s.finish() for s in started):
    assert status == 0, err[-3000:]
  for server in servers:
    server.shutdown()
    server.server_close()
  assert servers[0].asked and sorted(servers[0].asked) == sorted(servers[1].asked)
  # Train patients once each, six validation patients in batches of four at three steps, always with the same seeds.
  assert sorted(collections.Counter(servers[0].asked).values()) == 8 * [1] + 4 * [3] + 2 * [6]
  near(*[metrics(tmp_path / str(n), 'rl') for n in runs])
  # The gradients' mean, not the weights: where a gradient is as small as Adam's eps, the order in which floats are
  # added moves a weight by a whole step.
  one, two = (jax.tree.leaves(gradient_mean(tmp_path / str(n))) for n in runs)
  norm = np.sqrt(sum(np.sum(np.square(x)) for x in one))
  assert norm > 1e-4
  for a, b in zip(one, two, strict=True):
    np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * norm)
  sft, one, two = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(policy.load(folder, make_mesh()).params)])
                   for folder in (tmp_path / '1' / 'sft', tmp_path / '1' / 'rl', tmp_path / '2' / 'rl'))
  assert np.abs(sft - one).max() > 1e-4 and np.mean(np.abs(one - two) > 1e-5) < 1e-3


def gradient_mean(folder: pathlib.Path) -> Params:
  """Adam's first moment in the last checkpoint of the RL stage."""
  mesh = make_mesh()
  optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3, total_steps=2))
  with checkpoint.Checkpoints(folder / 'rl' / 'checkpoints') as kept:
    found = kept.restore(state.abstract(policy.load(folder / 'rl', mesh).config, optimizer, mesh))
  return jax.device_get(optax.tree_utils.tree_get(found[0].opt_state, 'mu'))


def test_the_results_are_the_same(runs):
  read = lambda name: [json.loads((w / name).read_text()) for w, _, _ in runs.values()]
  near(*read('evaluate/metrics.json'))
  near(*read('search/summary.json'))
  predictions = [pq.read_table(w / 'evaluate/predictions.parquet').to_pydict() for w, _, _ in runs.values()]
  ids = [pseudonyms.undone(w, table.pop('subject_id')) for table, (w, _, _) in zip(predictions, runs.values())]
  assert len(ids[0]) and ids[0].tolist() == ids[1].tolist()
  near(*predictions)
  for stage in ('expert', 'base', 'search', 'sft', 'rl'):
    near(*[metrics(folder, stage) for folder, _, _ in runs.values()])


def test_one_process_speaks_and_writes(runs):
  folder, out, err = runs[2]
  assert json.loads((folder / 'environment.json').read_text())['processes'] == 2
  for i, stage in enumerate(STAGES, 1):
    assert err.count(f'[{i}/{len(STAGES)}] {stage} finished') == 1
    assert len(list((folder / stage).glob('events.*'))) == len(list((runs[1][0] / stage).glob('events.*')))
  assert out.count('AUROC') == 1 and not (folder / 'superseded').exists()


def test_a_mistake_is_said_once_and_ends_all(start_main, tmp_path):
  """By two processes, and by one that finds no cluster around it."""
  flags = [CONFIG, f'--workdir={tmp_path / "w"}', '--config.rl.group=1']
  for started in (start_main(2, *flags), start_main(1, '--distributed', *flags)):
    status, _, err = started.finish()
    said = [line for line in err.splitlines() if line.startswith('eagrl_jax:')]
    assert status == 1 and len(said) == 1 and 'rl.group=1' in said[0], err
    assert 'Traceback' not in err and not (tmp_path / 'w').exists()
  assert 'no cluster' in err
