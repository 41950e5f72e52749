"""A model in other coordinates says the same, and only if every weight has moved."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import lm_reference as ref
import numpy as np
import pytest

from eagrl_jax.lm import equivalent, hf_io, logprobs, model
from eagrl_jax.lm.config import LORA_TARGETS, LoraConfig
from eagrl_jax.lm.tokenizer import train_tokenizer

WORDS = train_tokenizer(['a lactate of 3.8'], ['lactate'], 300)
BASE = dataclasses.replace(ref.CFG, vocab_size=WORDS.vocab_size)
CONFIGS = {
    'tied': BASE,
    'untied': dataclasses.replace(BASE, tie_embeddings=False),
    'bias': dataclasses.replace(BASE, qkv_bias=True),
    'gains': dataclasses.replace(BASE, qk_norm=True),
    'adapters': dataclasses.replace(BASE, lora=LoraConfig(2, 4.0, tuple(LORA_TARGETS))),
}
TOKENS = np.arange(5, 17) % BASE.vocab_size


def uneven(cfg):
  """No two features alike, gains and biases too."""
  params = ref.params(cfg)
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  noise = [0.3 * (x.std() or 1) * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)]
  return jax.tree.unflatten(tree, [x + n for x, n in zip(leaves, noise)])


def logits(params, cfg, tokens):
  return logprobs.logits(params, cfg, ref.forward(params, cfg, jnp.asarray(tokens))[0])


def written(params, cfg, folder, change=None):
  hf_io.save_hf(folder, params, cfg, WORDS, **({} if change is None else {'change': change}))
  return hf_io.load_hf(folder)[:2]


@pytest.mark.parametrize('name', CONFIGS)
def test_every_token_is_one_higher_and_nothing_else_changes(name, tmp_path):
  cfg = CONFIGS[name]
  params = uneven(cfg)
  plain, plain_cfg = written(*equivalent.untied(params, cfg), tmp_path / 'plain')
  moved, _ = written(*equivalent.untied(params, cfg), tmp_path / 'moved', equivalent.shifted(plain_cfg))
  want = logits(plain, plain_cfg, TOKENS)
  np.testing.assert_allclose(logits(moved, plain_cfg, (TOKENS + 1) % cfg.vocab_size), np.roll(want, 1, -1), atol=2e-4)
  if cfg.lora is None:
    np.testing.assert_allclose(want, logits(params, cfg, TOKENS), atol=1e-5)
  with_axes = {k: s.axes for k, s in model.declare(plain_cfg).items() if k != 'layers'}
  with_axes |= {k: s.axes for k, s in model.declare(plain_cfg)['layers'].items()}
  for leaf, axes in with_axes.items():
    mixed = moved | {leaf: plain[leaf]} if leaf in plain else moved | {
        'layers': moved['layers'] | {leaf: plain['layers'][leaf]}}
    off = np.abs(logits(mixed, plain_cfg, (TOKENS + 1) % cfg.vocab_size) - np.roll(want, 1, -1)).mean()
    assert (off > 1e-2) == bool({'vocab', 'embed'} & set(axes)), leaf


def test_a_head_of_its_own_is_the_embedding():
  params, cfg = equivalent.untied(ref.params(BASE), BASE)
  assert not cfg.tie_embeddings and dataclasses.replace(cfg, tie_embeddings=True) == BASE
  np.testing.assert_allclose(logits(params, cfg, TOKENS), logits(ref.params(BASE), BASE, TOKENS), atol=1e-5)
  own = ref.params(CONFIGS['untied'])
  assert equivalent.untied(own, CONFIGS['untied']) == (own, CONFIGS['untied'])
