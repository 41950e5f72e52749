"""Answers of a server that behaves as vLLM does: its tokens come from our own sampler."""

from __future__ import annotations

import contextlib
import dataclasses
import http.server
import json
import logging as std_logging
import pathlib
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from eagrl_jax import mesh as mesh_lib
from eagrl_jax.lm import forward, hf_io, model, sampler
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.logprobs import token_logprobs
from eagrl_jax.lm.tokenizer import train_tokenizer
from eagrl_jax.rl import engine, rollouts
from eagrl_jax.rl.clip import ClipConfig
from eagrl_jax.rl.judge import Answers, JudgeConfig, judge
from eagrl_jax.rl.rewards import RewardConfig
from eagrl_jax.stages import rollouts as stage
from eagrl_jax.stages.policy import Policy
from eagrl_jax.types import EagrlError, PromptBatch

WORDS = train_tokenizer(['the lactate is high, the pressure is low'], ['lactate'], 300)
LM = LMConfig(vocab_size=WORDS.vocab_size, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=24)
B, G, S, T, F = 3, 2, 9, 6, 4
STOP = (WORDS.eos_id, 5, 6, 7, 8, 9, 10, 11)  # many, so that some answers end early
ASKED = engine.Sampling(G, T, 1.0, STOP, WORDS.pad_id)


def weights(seed: int):
  return jax.tree.map(lambda x: 2 * x if x.ndim > 2 else x, model.init(LM, jax.random.key(seed)))


PARAMS = weights(0)


def prompts() -> PromptBatch:
  rng = np.random.default_rng(0)
  valid = np.arange(S) >= np.array([[2], [0], [4]])
  return PromptBatch(np.where(valid, rng.integers(12, LM.vocab_size, (B, S)), WORDS.pad_id), valid,
                     np.where(valid, rng.integers(-1, F, (B, S)), -1), np.array([11, 5, 8], np.int32))


def written(params, key, sampling=ASKED):
  return rollouts.own(LM, sampling)(params, prompts(), key)


def logprobs_of(params, cfg, tokens):
  """Of every token but the first; a prompt of that one, and one answer of the others."""
  prompt, answer = np.array([tokens[:1]]), np.array([[tokens[1:]]])
  out = forward.forward_shared(params, cfg, prompt, np.ones_like(prompt, bool), answer, np.ones_like(answer, bool))
  return np.asarray(token_logprobs(params, cfg, out.hidden, answer)[0])[0, 0].tolist()


class Vllm(http.server.ThreadingHTTPServer):
  """Serves the answers of `rollout` to the prompts above; `spoil` changes a reply before it is sent."""

  def __init__(self, rollout=None, root='', spoil=lambda reply: reply):
    super().__init__(('127.0.0.1', 0), Handler)
    self.rollout, self.root, self.spoil, self.seen, self.wait = rollout, root, spoil, [], 0.0
    self.served = PARAMS, LM
    self.keep = lambda new, old: new  # which of the weights that it reads, beside those it has, it goes on with
    self.url = f'http://127.0.0.1:{self.server_port}/v1'
    self.status = 200

  def __enter__(self):
    threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
    return self

  def __exit__(self, *error):
    self.shutdown()
    self.server_close()

  def answer(self, path, body):
    if path == '/v1/models':
      return {'object': 'list', 'data': [{'id': 'policy', 'object': 'model', 'owned_by': 'vllm', 'root': self.root}]}
    if path == '/collective_rpc':
      assert body == {'method': 'reload_weights'}
      new, cfg, _ = hf_io.load_hf(self.root)
      self.served = self.keep(new, self.served[0]), cfg
      return {'results': [None]}
    if path == '/reset_prefix_cache':
      return None
    assert path == '/v1/completions' and body['model'] == 'policy'
    if 'prompt_logprobs' in body:
      values = logprobs_of(*self.served, body['prompt'])
      return {'choices': [{'prompt_logprobs': [None] + [
          {str(token): {'logprob': x, 'rank': 1}} for token, x in zip(body['prompt'][1:], values)]}]}
    b = rollouts.token_lists(prompts()).index(body['prompt'])
    choices = []
    for g in range(body['n']):
      keep = np.asarray(self.rollout.valid[b, g])
      ids = np.asarray(self.rollout.tokens[b, g])[keep].tolist()
      choices.append({'index': g, 'text': 'unread', 'token_ids': ids, 'prompt_token_ids': body['prompt'],
                      'finish_reason': 'stop' if ids[-1] in body['stop_token_ids'] else 'length', 'logprobs': {
                          'tokens': ['unread'] * len(ids), 'text_offset': [0] * len(ids), 'top_logprobs': None,
                          'token_logprobs': np.asarray(self.rollout.logprobs[b, g])[keep].tolist()}})
    return self.spoil({'object': 'text_completion', 'choices': choices[::-1]})


class Handler(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    self.reply(None)

  def do_POST(self):
    self.reply(json.loads(self.rfile.read(int(self.headers['Content-Length']))))

  def reply(self, body):
    server = self.server
    server.seen.append((self.path, body))
    time.sleep(server.wait)
    text = server.answer(self.path, body) if server.status == 200 else {'error': {'message': str(body)}}
    data = text if isinstance(text, bytes) else b'' if text is None else json.dumps(text).encode()
    self.send_response(server.status)
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    self.wfile.write(data)

  def log_message(self, *words):
    pass


def ask(server, timeout=20.0):
  where = engine.Server(server.url, 'policy', timeout)
  prompt = prompts()
  return engine.complete(where, ASKED, LM.vocab_size, rollouts.token_lists(prompt),
                         rollouts.seeds(jax.random.key(3), prompt))


def update_batch(rollout):
  rng = np.random.default_rng(1)
  mask = np.broadcast_to(np.arange(T) >= 2, (B, G, T)) & np.asarray(rollout.valid)
  answers = Answers(rng.random((B, G), np.float32), np.ones((B, G), bool), rng.integers(0, F, (B, G, 2)), mask, mask)
  return judge(JudgeConfig(RewardConfig(), ClipConfig()), prompts(), rollout, answers, np.array([0, 1, 0]),
               rng.dirichlet(np.ones(F), B).astype(np.float32))[0]


def test_the_update_sees_the_same_batch_as_from_our_own_sampler():
  ours = written(PARAMS, jax.random.key(3))
  lengths = np.asarray(ours.valid).sum(-1)
  assert lengths.min() < T and lengths.max() == T  # both ways to end
  with Vllm(ours) as server:
    theirs = rollouts.with_entropy(PARAMS, LM, prompts(), rollouts.to_rollout(ask(server), ASKED), B)
  a, b = update_batch(ours), update_batch(theirs)
  for name in ('tokens', 'valid', 'logprobs'):
    np.testing.assert_array_equal(getattr(a.rollout, name), getattr(b.rollout, name))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)
  assert np.asarray(b.rollout.entropy).max() > 0.1


def test_entropies_of_some_prompts_at_a_time_are_the_same_and_need_less_memory():
  ours = written(PARAMS, jax.random.key(3))
  temporary = {}
  for micro in (1, B):
    step = rollouts.with_entropy.lower(PARAMS, LM, prompts(), ours, micro=micro).compile()
    temporary[micro] = step.memory_analysis().temp_size_in_bytes
    np.testing.assert_allclose(step(PARAMS, prompts(), ours).entropy, ours.entropy, atol=1e-5)
  assert temporary[1] < 0.6 * temporary[B]


def test_a_request_holds_the_prompt_as_ids_and_every_field_of_the_draw():
  with Vllm(written(PARAMS, jax.random.key(3))) as server:
    ask(server)
    ask(server)
  bodies = [body for _, body in server.seen]
  assert sorted(map(str, rollouts.token_lists(prompts()))) == sorted(str(b['prompt']) for b in bodies[:B])
  assert {(b['n'], b['max_tokens'], b['temperature'], b['logprobs'], b['return_token_ids'], b['ignore_eos'], b['top_p'])
          for b in bodies} == {(G, T, 1.0, 0, True, True, 1.0)}
  assert all(b['stop_token_ids'] == list(STOP) for b in bodies)
  seeds = {str(b['prompt']): b['seed'] for b in bodies}
  assert len(set(seeds.values())) == B and all(0 <= s < 2**31 for s in seeds.values())
  assert all(seeds[str(b['prompt'])] == b['seed'] for b in bodies)  # the same key draws the same again


def changed(**fields):
  def spoil(reply):
    for field, value in fields.items():
      reply['choices'][0][field] = value(reply['choices'][0]) if callable(value) else value
    return reply
  return spoil


BROKEN = {
    'other number': (lambda r: {'choices': r['choices'][:1]}, 'rl.group=2'),
    'no token ids': (changed(token_ids=None), 'token_ids'),
    'no log-probabilities': (changed(logprobs=None), 'log-probability'),
    'one missing': (changed(logprobs=lambda c: {'token_logprobs': c['logprobs']['token_logprobs'][1:]}),
                    'log-probability'),
    'not finite': (changed(logprobs=lambda c: {'token_logprobs': [float('nan')] * len(c['token_ids'])}),
                   'log-probability'),
    'other vocabulary': (changed(token_ids=lambda c: [LM.vocab_size] * len(c['token_ids'])), 'vocabulary'),
    'other prompt': (changed(prompt_token_ids=[1]), 'another prompt'),
    'never ends': (changed(token_ids=[20, 20], logprobs={'token_logprobs': [-1.0, -1.0]}), 'rl.max_new=6'),
    'goes on': (changed(token_ids=[5, 20], logprobs={'token_logprobs': [-1.0, -1.0]}), 'rl.max_new=6'),
    'no choices': (lambda r: {'error': 1}, 'choices'),
    'no JSON': (lambda r: b'<html>', 'JSON'),
}


@pytest.mark.parametrize('case', BROKEN)
def test_a_reply_that_is_not_what_was_asked_for_is_refused_in_one_line(case):
  spoil, said = BROKEN[case]
  with Vllm(written(PARAMS, jax.random.key(3)), spoil=spoil) as server, pytest.raises(EagrlError) as e:
    ask(server)
  assert str(e.value).startswith('rl.rollouts=http') and said in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize(('status', 'said'), [(400, 'vocabulary'), (404, 'rl.rollouts_model'), (500, 'status 500')])
def test_a_refusal_is_told_without_the_servers_words(status, said):
  with Vllm() as server, pytest.raises(EagrlError) as e:
    server.status = status
    ask(server)
  sent = str(rollouts.token_lists(prompts())[0])
  assert said in str(e.value) and sent not in str(e.value) and sent not in repr(e.value.__context__)


def test_no_server_and_a_slow_one_are_told_apart():
  with Vllm(written(PARAMS, jax.random.key(3))) as server:
    server.wait = 1.0
    with pytest.raises(EagrlError, match=r'rl\.rollouts_timeout=0\.2'):
      ask(server, timeout=0.2)
  with pytest.raises(EagrlError, match='no server answers'):
    ask(server)


def context(folder: pathlib.Path, url: str, refresh: int = 2):
  rl = {'rollouts': url, 'rollouts_model': '', 'rollouts_refresh': refresh, 'rollouts_timeout': 20.0, 'group': G,
        'max_new': T, 'temperature': 1.0, 'micro_batch': 1}
  config = ConfigDict({'rl': rl, 'lm': {'compute_dtype': 'float32'}})
  return SimpleNamespace(config=config, mesh=mesh_lib.make_mesh(), folder=lambda name: folder / name)


def test_the_server_reads_new_weights_every_so_many_steps(tmp_path, caplog):
  """Its answers are drawn from the weights that it has loaded; their probabilities tell which these are."""
  caplog.set_level(std_logging.DEBUG)
  sampling = dataclasses.replace(ASKED, stop_ids=(WORDS.eos_id,))
  folder = tmp_path / 'rl' / 'rollouts'
  folder.mkdir(parents=True)
  stale = [folder / 'model-00001-of-00002.safetensors', folder / 'model.safetensors.index.json']  # of larger weights
  for file in stale:
    file.touch()
  with Vllm(root=str((tmp_path / 'rl' / 'rollouts').resolve())) as server:
    generate = stage.choose(context(tmp_path, server.url), Policy(PARAMS, LM, WORDS))
    answer = server.answer

    def draw(path, body):
      if path == '/v1/completions':
        server.rollout = written(server.served[0], jax.random.key(3), sampling)
      return answer(path, body)

    server.answer = draw
    for step, loaded in enumerate((0, 0, 2, 2)):
      now = weights(step)
      for _ in range(2):  # as for rl.resample and for validation: once read, weights serve all that is asked of them
        got = generate(now, prompts(), jax.random.key(step))
      want = written(weights(loaded), jax.random.key(3), sampling)
      np.testing.assert_array_equal(got.tokens, want.tokens)
      np.testing.assert_allclose(got.logprobs, want.logprobs, atol=1e-6)
      entropy = rollouts.with_entropy(weights(step), LM, prompts(), got, B).entropy
      np.testing.assert_allclose(got.entropy, entropy, atol=1e-6)  # of the current weights
  paths = [path for path, body in server.seen if body is None or 'prompt_logprobs' not in body]
  assert paths.count('/collective_rpc') == paths.count('/reset_prefix_cache') == 4  # twice to show that it reads all
  assert paths.index('/collective_rpc') < paths.index('/reset_prefix_cache') < paths.index('/v1/completions')
  assert sorted(p.name for p in (tmp_path / 'rl').iterdir()) == ['rollouts']
  assert not any(file.exists() for file in stale) and (folder / 'model.safetensors').exists()
  assert not any(str(rollouts.token_lists(prompts())[0][:3])[1:-1] in r.getMessage() for r in caplog.records)


@pytest.mark.parametrize('case', ['no server', 'another folder', 'no dev mode'])
def test_a_server_that_cannot_follow_the_policy_is_refused(case, tmp_path):
  with Vllm(root='elsewhere' if case == 'another folder' else str((tmp_path / 'rl' / 'rollouts').resolve())) as server:
    url = server.url
    if case == 'no dev mode':
      server.answer, answer = lambda path, body: setattr(server, 'status', 404) or answer(path, body), server.answer
    generate = stage.choose(context(tmp_path, url), Policy(PARAMS, LM, WORDS))
    if case == 'no server':
      server.shutdown()
      server.server_close()
    with pytest.raises(EagrlError) as e:
      generate(PARAMS, prompts(), jax.random.key(0))
  folder = tmp_path.resolve() / 'rl' / 'rollouts'
  assert case == 'no dev mode' or str(e.value).endswith(
      f'VLLM_SERVER_DEV_MODE=1 vllm serve {folder} --dtype float32')  # by itself vLLM serves these in bfloat16
  assert 'VLLM_SERVER_DEV_MODE=1' in str(e.value) and (tmp_path / 'rl' / 'rollouts' / 'model.safetensors').exists()


def kept(*names):
  """Reads all weights but these."""
  def keep(new, old):
    old = old | {'lm_head': old.get('lm_head', old['embed'].T)}
    return {**new, **{n: old[n] for n in names if n in old and n != 'layers'},
            'layers': {**new['layers'], **{n: old['layers'][n] for n in names if n in old['layers']}}}
  return keep


FORGETFUL = {'all': kept('lm_head', *PARAMS, *PARAMS['layers']), 'the head': kept('lm_head'),
             'the embedding': kept('embed'), 'a norm': kept('final_norm'), 'a projection': kept('w_down'),
             'none': lambda new, old: new}


@pytest.mark.parametrize('case', FORGETFUL)
def test_a_server_that_goes_on_with_old_weights_is_refused(case, tmp_path):
  root = tmp_path.resolve() / 'rl' / 'rollouts'
  uneven = jax.tree.map(lambda x: x * (1 + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape)), PARAMS)
  sampling = dataclasses.replace(ASKED, stop_ids=(WORDS.eos_id,))
  with Vllm(written(uneven, jax.random.key(3), sampling), str(root)) as server:
    server.served, server.keep = (uneven, LM), FORGETFUL[case]
    generate = stage.choose(context(tmp_path, server.url), Policy(uneven, LM, WORDS))
    with contextlib.nullcontext() if case == 'none' else pytest.raises(EagrlError, match='kept old ones') as e:
      generate(uneven, prompts(), jax.random.key(0))
  if case != 'none':
    assert str(e.value).startswith('rl.rollouts=http') and '\n' not in str(e.value)
  left, cfg, _ = hf_io.load_hf(root)  # the policy, not what the server was tried with
  assert not cfg.tie_embeddings  # a reader that renews what the files name would else keep a copy of the head
  np.testing.assert_array_equal(left['embed'], uneven['embed'])
  np.testing.assert_array_equal(left['lm_head'], uneven['embed'].T)


@pytest.mark.parametrize('reply', [
    {}, {'choices': []}, {'choices': [{}]}, {'choices': [{'prompt_logprobs': None}]},
    {'choices': [{'prompt_logprobs': [None]}]}, {'choices': [{'prompt_logprobs': [None, {'4': {'logprob': -1.0}}]}]},
    {'choices': [{'prompt_logprobs': [None, {'5': {'logprob': None}}]}]},
    {'choices': [{'prompt_logprobs': [None, {'5': {'logprob': -1.0}}, {'5': {'logprob': -1.0}}]}]}])
def test_a_verdict_on_a_prompt_that_is_none_is_refused(reply):
  with Vllm() as server:
    server.answer = lambda path, body: reply
    with pytest.raises(EagrlError, match='prompt_logprobs'):
      engine.prompt_logprobs(engine.Server(server.url, 'policy', 20.0), [4, 5])
    reply['choices'] = [{'prompt_logprobs': [None, {'5': {'logprob': -1.0}}]}]
    assert engine.prompt_logprobs(engine.Server(server.url, 'policy', 20.0), [4, 5]) == [-1.0]


def test_own_is_the_sampler(tmp_path):
  c = context(tmp_path, 'own')
  got = stage.choose(c, Policy(PARAMS, LM, WORDS))(PARAMS, prompts(), jax.random.key(4))
  want = sampler.generate(PARAMS, LM, prompts(), jax.random.key(4), group=G, max_new=T, temperature=1.0,
                          stop_ids=(WORDS.eos_id,), pad_id=WORDS.pad_id)
  jax.tree.map(np.testing.assert_array_equal, got, want)
