"""Logits, attention and greedy continuations as transformers computes them: of golden files (tests/golden), and live.

The real-weight tests read EAGRL_MODELS (default ~/.cache/eagrl_models), a folder with smollm2-135m.gguf and
qwen2.5-coder-0.5b.gguf; the live ones need the `parity` extra.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import make_lm_golden as golden
import make_real_golden as real
import numpy as np
import pytest

from eagrl_jax.lm import checkpoint_config, forward, gguf_io, hf_io, layout, logprobs, sampler
from eagrl_jax.lm.tokenizer import train_tokenizer
from eagrl_jax.types import PromptBatch

GOLDEN = Path(__file__).parent.parent / 'golden'
MODELS = Path(os.environ.get('EAGRL_MODELS', '~/.cache/eagrl_models')).expanduser()
PAD = 3  # empty columns before a prompt, which must change nothing


def stored(name):
  with np.load(GOLDEN / f'lm_{name}.npz') as file:
    return dict(file)


def left_padded(prompt):
  tokens, valid = np.zeros((1, PAD + len(prompt)), np.int32), np.ones((1, PAD + len(prompt)), bool)
  tokens[0, PAD:], valid[0, :PAD] = prompt, False
  return tokens, valid


def logits_of(params, cfg, prompt, answer):
  """Of every prompt and answer token but the last, `[S + T - 1, V]`."""
  answer = np.asarray(answer)[None, None]
  out = forward.forward_shared(params, cfg, *left_padded(prompt), answer, np.ones_like(answer, bool))
  return logprobs.logits(params, cfg, jnp.concatenate([out.prompt_hidden[0, PAD:-1], out.hidden[0, 0]]))


def attention_of(params, cfg, prompt, answer):
  """Of every answer token to every prompt token, mean over heads, `[L, T, S]`: each sibling reads one row."""
  rows = np.eye(len(answer), dtype=np.float32)[None]
  columns = np.eye(PAD + len(prompt), dtype=np.float32)[None, :, PAD:]
  siblings = np.broadcast_to(answer, rows.shape)
  tap = forward.AttentionTap(columns, rows, np.full(cfg.n_heads, 1 / cfg.n_heads, np.float32))
  out = forward.forward_shared(params, cfg, *left_padded(prompt), siblings, np.ones_like(siblings, bool), tap)
  return out.attention[:, 0]


def greedy(params, cfg, prompt, new):
  tokens, valid = left_padded(prompt)
  batch = PromptBatch(tokens, valid, np.full(tokens.shape, -1), np.zeros(1, np.int32))
  out = sampler.generate(params, cfg, batch, jax.random.key(0), group=1, max_new=new, temperature=0, stop_ids=(),
                         pad_id=0)
  assert np.all(out.valid)
  return out.tokens[0, 0]


def tiny(config, tensors):
  cfg = checkpoint_config.from_hf(config)
  return layout.assemble(cfg, lambda leaf, layer: tensors[layout.hf_key(leaf, layer)]), cfg


def check_logits_and_attention(params, cfg, tokens, logits, attention):
  n = 6  # prompt tokens; the rest is the answer
  np.testing.assert_allclose(logits_of(params, cfg, tokens[:n], tokens[n:]), logits[:-1], atol=1e-4)
  want = attention.mean(1)[:, n:, :n]
  np.testing.assert_allclose(attention_of(params, cfg, tokens[:n], tokens[n:]), want, atol=1e-5)
  assert np.ptp(want) > 0.1


def test_the_cases_cover_every_family_tied_and_untied():
  kinds = {case['model_type'] for case in golden.CASES.values()}
  assert kinds == set(checkpoint_config.ARCHITECTURES)
  assert {case['tie_word_embeddings'] for case in golden.CASES.values()} == {True, False}


@pytest.mark.parametrize('name', list(golden.CASES))
def test_a_tiny_model_equals_transformers(name):
  file = stored(name)
  config = json.loads(str(file['config']))
  assert config == golden.SHAPE | golden.CASES[name]
  params, cfg = tiny(config, golden.weights(config))
  check_logits_and_attention(params, cfg, file['prompt'], file['logits'], file['attention'])
  assert file['smallest_gap'] > golden.SMALLEST_GAP and len(file['greedy']) == golden.NEW_TOKENS
  np.testing.assert_array_equal(greedy(params, cfg, file['prompt'], golden.NEW_TOKENS), file['greedy'])


@pytest.mark.parametrize('name', list(golden.CASES))
def test_other_weights_equal_transformers_live(name):
  pytest.importorskip('torch', reason='needs the parity extra (torch)')
  config = golden.SHAPE | golden.CASES[name]
  tensors = golden.weights(config, seed=11)
  model = golden.torch_model(config, tensors)
  prompt, new, _ = golden.decided_prompt(config, model)
  params, cfg = tiny(config, tensors)
  check_logits_and_attention(params, cfg, prompt, *golden.logits_and_attention(model, prompt))
  np.testing.assert_array_equal(greedy(params, cfg, prompt, len(new)), new)


@pytest.mark.parametrize('name', list(golden.CASES))
def test_what_we_save_is_the_same_model_to_transformers_live(name, tmp_path):
  pytest.importorskip('torch', reason='needs the parity extra (torch)')
  import transformers
  config = golden.SHAPE | golden.CASES[name]
  params, cfg = tiny(config, golden.weights(config))
  hf_io.save_hf(tmp_path, params, cfg, train_tokenizer(['a lactate of 3.8'], ['lactate'], 300))
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation='eager').eval()
  file = stored(name)
  logits, _ = golden.logits_and_attention(model, file['prompt'].astype(np.int64))
  np.testing.assert_allclose(logits, file['logits'], atol=1e-5)


@pytest.fixture(scope='module', params=list(real.MODELS))
def released(request):
  """`(golden file, params, cfg, tokenizer)` of a released checkpoint."""
  path, file = MODELS / f'{request.param}.gguf', stored(request.param)
  if not path.is_file():
    pytest.skip(f'{path.name} is absent; set EAGRL_MODELS to the folder that holds it')
  if real.sha256(path) != str(file['sha256']):
    pytest.skip(f'{path.name} is another file than the one that the golden numbers come from')
  return file, *gguf_io.load_gguf(path)


def test_released_logits_equal_transformers(released):
  file, params, cfg, _ = released
  logits = np.asarray(logits_of(params, cfg, file['prompt'], file['greedy']))
  subset = real.vocabulary_subset(cfg.vocab_size)
  np.testing.assert_allclose(logits[np.ix_(real.POSITIONS, subset)], file['logits'], rtol=0, atol=1e-3)
  np.testing.assert_allclose(logits.max(-1), file['top_logit'][:-1], rtol=0, atol=1e-3)
  np.testing.assert_allclose(jax.nn.logsumexp(logits, axis=-1), file['logsumexp'][:-1], rtol=0, atol=1e-3)
  np.testing.assert_array_equal(logits.argmax(-1), file['top_id'][:-1])


def test_released_attention_equals_transformers(released):
  file, params, cfg, _ = released
  got = attention_of(params, cfg, file['prompt'], file['greedy'][:real.ROWS])
  np.testing.assert_allclose(got[file['layers']], file['attention'], rtol=0, atol=1e-5)
  assert np.ptp(file['attention'], axis=(1, 2)).min() > 0.1


def test_released_greedy_continuation_equals_transformers(released):
  file, params, cfg, _ = released
  assert file['smallest_gap'] > golden.SMALLEST_GAP and len(file['greedy']) == real.NEW_TOKENS
  np.testing.assert_array_equal(greedy(params, cfg, file['prompt'], real.NEW_TOKENS), file['greedy'])


def test_released_tokenizer_equals_transformers(released):
  file, *_, tokenizer = released
  assert tokenizer.encode(real.PROMPT) == file['prompt'].tolist()
  want = json.loads(str(file['string_ids']))
  assert {text: tokenizer.encode(text) for text in real.STRINGS} == dict(zip(real.STRINGS, want))
