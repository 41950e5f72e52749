"""Logits and attention of four architectures as transformers computes them (tests/golden/make_lm_golden.py)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax.numpy as jnp
import make_lm_golden as golden
import numpy as np
import pytest

from eagrl_jax.lm import checkpoint_config, forward, gguf_io, hf_io, logprobs

GOLDEN = Path(__file__).parent.parent / 'golden'


@pytest.mark.parametrize('name', list(golden.CASES))
def test_logits_and_attention_equal_transformers(name):
  file = np.load(GOLDEN / f'lm_{name}.npz')
  config = json.loads(str(file['config']))
  cfg = checkpoint_config.from_hf(config)
  tensors, tokens = golden.weights(config), golden.tokens(config)
  params = hf_io.assemble(cfg, lambda leaf, layer: tensors[hf_io.hf_key(leaf, layer)])

  n = 6  # prompt tokens; the rest is the answer, whose rows the tap reads one at a time
  answer = np.broadcast_to(tokens[n:], (1, len(tokens) - n, len(tokens) - n))
  tap = forward.AttentionTap(jnp.eye(n)[None], jnp.eye(len(tokens) - n)[None], jnp.full(cfg.n_heads, 1 / cfg.n_heads))
  out = forward.forward_shared(params, cfg, tokens[None, :n], np.ones((1, n), bool), answer, np.ones_like(answer, bool),
                               tap)
  states = jnp.concatenate([out.prompt_hidden[0, :-1], out.hidden[0, 0]])
  np.testing.assert_allclose(logprobs.logits(params, cfg, states), file['logits'][:-1], atol=1e-4)
  want = file['attention'].mean(0)[n:, :n]
  np.testing.assert_allclose(out.attention[-1, 0], want, atol=1e-5)
  assert np.ptp(want) > 0.1


SMOLLM2 = Path(os.environ.get('EAGRL_SMOLLM2_GGUF', Path.home() / '.cache/eagrl_models/smollm2-135m.gguf'))


@pytest.mark.skipif(not SMOLLM2.is_file(), reason='SmolLM2 GGUF absent; set EAGRL_SMOLLM2_GGUF to its path')
def test_smollm2_continues_a_known_sentence():
  params, cfg, tokenizer = gguf_io.load_gguf(SMOLLM2)
  assert (cfg.n_layers, cfg.n_heads, cfg.n_kv_heads, cfg.tie_embeddings) == (30, 9, 3, True)
  ids = np.array(tokenizer.encode('The capital of France is'))[None]
  hidden, _ = forward.prefill(params, cfg, ids, np.ones_like(ids, bool))
  assert tokenizer.piece(int(jnp.argmax(logprobs.logits(params, cfg, hidden)[0]))) == ' Paris'
