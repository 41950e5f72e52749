"""Answers of a real vLLM server, and what it says of weights that it has read again.

EAGRL_VLLM is the Python of an environment that has vLLM, one for CPUs too; `.ci/run` makes one in its slow lane.
"""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from eagrl_jax import mesh as mesh_lib
from eagrl_jax.lm import model
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.tokenizer import train_tokenizer
from eagrl_jax.rl import rollouts
from eagrl_jax.stages import rollouts as stage
from eagrl_jax.stages.policy import Policy
from eagrl_jax.types import EagrlError, PromptBatch

PYTHON = os.environ.get('EAGRL_VLLM')
pytestmark = pytest.mark.skipif(not PYTHON, reason='needs a Python that has vLLM: EAGRL_VLLM=path/to/python')

WORDS = train_tokenizer(['the lactate is high, the pressure is low'], ['lactate'], 300)
LM = LMConfig(vocab_size=WORDS.vocab_size, d_model=64, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=32, d_ff=96,
              qk_norm=True)  # of 32 and more: vLLM's attention on a CPU has no smaller heads
B, G, S, T = 3, 4, 20, 24
WAIT = 400  # seconds for a server to load and to compile


def weights(seed: int):
  return jax.tree.map(lambda x: 3 * x if x.ndim > 2 else x, model.init(LM, jax.random.key(seed)))


def prompts() -> PromptBatch:
  rng = np.random.default_rng(0)
  valid = np.arange(S) >= np.array([[2], [0], [4]])
  return PromptBatch(np.where(valid, rng.integers(12, LM.vocab_size, (B, S)), WORDS.pad_id), valid,
                     np.full((B, S), -1), np.array([11, 5, 8], np.int32))


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


@pytest.fixture
def context(tmp_path):
  rl = {'rollouts': f'http://127.0.0.1:{free_port()}/v1', 'rollouts_model': '', 'rollouts_refresh': 1,
        'rollouts_timeout': 60.0, 'group': G, 'max_new': T, 'temperature': 1.0, 'micro_batch': 1}
  config = ConfigDict({'rl': rl, 'lm': {'compute_dtype': 'float32'}})
  return SimpleNamespace(config=config, mesh=mesh_lib.make_mesh(), folder=lambda name: tmp_path / name)


@pytest.fixture
def serve(context, tmp_path):
  """Starts the server that the message asks for; chunked prefill fails on a CPU once a request has a seed (0.32)."""
  started = []

  def start(folder: pathlib.Path):
    port = context.config.rl.rollouts.split(':')[2].split('/')[0]
    with (tmp_path / 'server.log').open('w') as log:
      started.append(subprocess.Popen(
          [PYTHON, '-m', 'vllm.entrypoints.openai.api_server', '--model', folder, '--port', port, '--dtype', 'float32',
           '--max-model-len', '128', '--enforce-eager', '--no-enable-chunked-prefill'], stdout=log, stderr=log,
          env=os.environ | {'VLLM_SERVER_DEV_MODE': '1', 'VLLM_CPU_KVCACHE_SPACE': '1'}))
    until = time.monotonic() + WAIT
    while started[0].poll() is None and time.monotonic() < until:
      with socket.socket() as s:
        if s.connect_ex(('127.0.0.1', int(port))) == 0:
          return
      time.sleep(1)
    pytest.fail((tmp_path / 'server.log').read_text()[-3000:])

  yield start
  for process in started:
    process.terminate()
    process.wait(60)


def test_its_answers_follow_the_policy(context, serve, tmp_path):
  """Its log-probabilities are ours, of the weights of every step, a tied head's too; a key draws the same again."""
  generate = stage.choose(context, Policy(weights(0), LM, WORDS))
  with pytest.raises(EagrlError, match='vllm serve'):
    generate(weights(0), prompts(), jax.random.key(0))
  serve(tmp_path.resolve() / 'rl' / 'rollouts')
  seen = []
  for step in range(3):
    params = weights(step)
    got = generate(params, prompts(), jax.random.key(7))
    again = generate(params, prompts(), jax.random.key(7))
    np.testing.assert_array_equal(got.tokens, again.tokens)
    want = rollouts.scores(params, LM, prompts(), got, B, lambda logp, _: logp)
    np.testing.assert_allclose(got.logprobs, np.where(got.valid, want, 0), atol=1e-4)
    lengths = np.asarray(got.valid).sum(-1)
    assert lengths.min() >= 1 and lengths.max() == T
    assert len({tuple(row) for row in np.asarray(got.tokens).reshape(B * G, T)}) > B  # siblings differ
    seen.append(np.asarray(got.logprobs))
  assert np.abs(seen[0] - seen[1]).max() > 0.1
