"""Adapters: the same function as merged weights, the chain rule's gradients, and nothing trained beside them."""

from __future__ import annotations

import dataclasses
import functools
import json

import chex
import jax
import jax.numpy as jnp
import lm_reference as ref
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from eagrl_jax.lm import forward, hf_io, layout, lora, model, peft_io, sampler
from eagrl_jax.lm.config import LORA_TARGETS, LoraConfig
from eagrl_jax.lm.tokenizer import train_tokenizer
from eagrl_jax.types import EagrlError, PromptBatch

PLAIN = dataclasses.replace(ref.CFG, qkv_bias=True)
CFG = dataclasses.replace(PLAIN, lora=LoraConfig(3, 6.0, tuple(LORA_TARGETS)))
BATCH = ref.ragged()


@functools.cache
def adapted(cfg=CFG):
  """Weights with adapters that matter: B is not zero."""
  base = ref.params(dataclasses.replace(cfg, lora=None))
  fresh, _ = lora.split(model.init(cfg, jax.random.key(1)), cfg)
  r = np.random.default_rng(2)
  fresh = jax.tree.map(lambda x: x + 0.2 * r.normal(size=x.shape).astype(np.float32), fresh)
  return lora.join(fresh, base)


def merge(params, cfg):
  """The plain weights, whole stacks at once, and their config."""
  layers = {k: v for k, v in params['layers'].items() if not lora.is_adapter(k)}
  for name in cfg.lora.names:
    a, b = (params['layers'][name + s] for s in lora.SUFFIXES)
    low = jnp.einsum('LIR,LRO->LIO', a.reshape(a.shape[0], -1, cfg.lora.rank), b.reshape(*b.shape[:2], -1),
                     precision='highest')
    layers[name] = jnp.asarray(layers[name], jnp.float32) + cfg.lora.scale * low.reshape(layers[name].shape)
  return {**params, 'layers': layers}, dataclasses.replace(cfg, lora=None)


@functools.partial(jax.jit, static_argnums=1)
def states(params, cfg):
  return forward.forward_shared(params, cfg, *BATCH).hidden


def test_adapters_equal_merged_weights():
  merged, plain = merge(adapted(), CFG)
  assert plain == PLAIN and set(merged['layers']) == set(model.declare(PLAIN)['layers'])
  np.testing.assert_allclose(states(adapted(), CFG), states(merged, plain), atol=2e-5)
  base = lora.split(adapted(), CFG)[1]
  assert np.abs(states(adapted(), CFG) - states(base, PLAIN)).max() > 0.1


def test_every_target_counts():
  whole = states(adapted(), CFG)
  for target in LORA_TARGETS:
    rest = tuple(t for t in LORA_TARGETS if t != target)
    cfg = dataclasses.replace(CFG, lora=dataclasses.replace(CFG.lora, targets=rest))
    assert np.abs(states(adapted(), cfg) - whole).max() > 1e-3, target


def test_fresh_adapters_change_nothing():
  fresh, _ = lora.split(model.init(CFG, jax.random.key(1)), CFG)
  base = ref.params(PLAIN)
  np.testing.assert_array_equal(states(lora.join(fresh, base), CFG), states(base, PLAIN))


def test_the_sampler_reads_them():
  merged, plain = merge(adapted(), CFG)
  prompt = PromptBatch(BATCH[0], BATCH[1], np.full(BATCH[0].shape, -1), np.arange(2))
  write = lambda p, cfg: sampler.generate(p, cfg, prompt, jax.random.key(0), group=2, max_new=5, temperature=0.0,
                                          stop_ids=(), pad_id=0)
  one, two = write(adapted(), CFG), write(merged, plain)
  np.testing.assert_array_equal(one.tokens, two.tokens)
  np.testing.assert_allclose(one.logprobs, two.logprobs, atol=1e-4)


def test_gradients_follow_from_those_of_the_merged_weights():
  """dA = s dW B^T and dB = s A^T dW, with dW the gradient that full fine-tuning would see."""
  direction = jnp.asarray(np.random.default_rng(3).normal(size=(2, 2, 5, ref.CFG.d_model)), jnp.float32)
  trained, frozen = lora.split(adapted(), CFG)
  merged, plain = merge(adapted(), CFG)
  got = jax.jit(jax.grad(lambda t: jnp.sum(direction * states(lora.join(t, frozen), CFG))))(trained)
  full = jax.jit(jax.grad(lambda p: jnp.sum(direction * states(p, plain))))(merged)
  for name in CFG.lora.names:
    a, b = (np.asarray(trained['layers'][name + s]) for s in lora.SUFFIXES)
    flat_a, flat_b = a.reshape(a.shape[0], -1, 3), b.reshape(b.shape[0], 3, -1)
    dw = np.asarray(full['layers'][name]).reshape(a.shape[0], flat_a.shape[1], -1)
    want_a, want_b = 2.0 * dw @ flat_b.swapaxes(1, 2), 2.0 * flat_a.swapaxes(1, 2) @ dw
    for want, suffix in ((want_a, '_a'), (want_b, '_b')):
      grad = np.asarray(got['layers'][name + suffix]).reshape(want.shape)
      assert np.linalg.norm(grad - want) < 1e-4 * np.linalg.norm(want), name + suffix
  assert {k for k in got['layers']} == {n + s for n in CFG.lora.names for s in lora.SUFFIXES}


def test_frozen_weights_have_no_gradient_computed():
  """The products that full fine-tuning spends on weight gradients are gone from the compiled step."""
  wide = dataclasses.replace(PLAIN, d_model=96, d_ff=256, head_dim=24)
  adapters = dataclasses.replace(wide, lora=LoraConfig(2, 4.0, tuple(LORA_TARGETS)))
  tokens = jnp.zeros((2, 32), int)
  answer = jnp.zeros((2, 1, 8), int)

  def flops(cfg):
    def loss(trained, frozen):
      out = forward.forward_shared(lora.join(trained, frozen), cfg, tokens, tokens >= 0, answer, answer >= 0)
      return jnp.sum(out.hidden**2)
    shapes = lora.split(model.abstract(cfg), cfg)
    return jax.jit(jax.grad(loss)).lower(*shapes).compile().cost_analysis()['flops']

  assert flops(adapters) < 0.85 * flops(wide)


def test_frozen_weights_are_kept_as_they_are_used():
  cfg = dataclasses.replace(CFG, compute_dtype='bfloat16')
  trained, frozen = lora.split(model.abstract(cfg), cfg)
  assert {x.dtype.name for x in jax.tree.leaves(trained)} == {'float32'}
  assert {x.dtype.name for x in jax.tree.leaves(frozen)} == {'bfloat16'}
  chex.assert_trees_all_equal_shapes_and_dtypes(model.init(cfg, jax.random.key(0)), model.abstract(cfg))


@pytest.fixture(scope='module')
def tokenizer():
  return train_tokenizer(['a lactate of 3.8'], ['lactate'], 300)


def test_a_merged_export_is_a_plain_checkpoint(tokenizer, tmp_path):
  hf_io.save_hf(tmp_path, adapted(), CFG, tokenizer)
  params, cfg, _ = hf_io.load_hf(tmp_path)
  assert cfg == PLAIN
  np.testing.assert_allclose(states(params, cfg), states(adapted(), CFG), atol=2e-5)


@pytest.mark.parametrize('frozen', ['float32', 'bfloat16'])
def test_weights_are_merged_one_at_a_time_and_to_the_bit(frozen, monkeypatch, tokenizer, tmp_path):
  trained, rest = lora.split(adapted(), CFG)
  params = lora.join(trained, jax.tree.map(lambda x: jnp.asarray(x, frozen), rest))
  want = jax.tree.map(lambda x: np.asarray(x, np.float32), merge(params, CFG)[0])
  one = max(x[0].size * 4 for x in want['layers'].values())
  held = lambda: sum(x.nbytes for x in jax.live_arrays())
  before, most, to_hf = held(), [], layout.to_hf
  monkeypatch.setattr(layout, 'to_hf', lambda *args: (most.append(held()), to_hf(*args))[1])
  hf_io.save_hf(tmp_path, params, CFG, tokenizer, shard_bytes=4000)
  assert max(most) - before <= 2 * one, 'more than a weight and what it is made of'
  jax.tree.map(np.testing.assert_array_equal, hf_io.load_hf(tmp_path)[0], want)
  index = json.loads((tmp_path / hf_io.INDEX).read_text())
  files = [safetensors_numpy.load_file(f) for f in tmp_path.glob('*.safetensors')]
  sizes = [sum(x.nbytes for x in file.values()) for file in files]
  assert index['metadata']['total_size'] == sum(sizes) and all(s <= 4000 for s, f in zip(sizes, files) if len(f) > 1)


@pytest.mark.filterwarnings('ignore:`is_gradient_checkpointing`:FutureWarning')  # peft 0.21 asks so of transformers
def test_peft_reads_the_adapters(tokenizer, tmp_path):
  """Live, where torch and peft are installed (the `parity` extra)."""
  torch, peft, transformers = map(pytest.importorskip, ('torch', 'peft', 'transformers'))
  hf_io.save_hf(tmp_path / 'base', lora.split(adapted(), CFG)[1], PLAIN, tokenizer)
  peft_io.save_peft(tmp_path / 'adapter', adapted(), CFG, tokenizer, 'base')
  base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'base', dtype=torch.float32)
  lm = peft.PeftModel.from_pretrained(base, tmp_path / 'adapter').eval()
  ids = np.random.default_rng(0).integers(0, ref.CFG.vocab_size, (1, 9))
  with torch.no_grad():
    want = lm(torch.tensor(ids), output_hidden_states=True).hidden_states[-1].numpy()
  got = forward.forward_shared(adapted(), CFG, ids, ids >= 0, np.zeros((1, 1, 1), int), np.ones((1, 1, 1), bool))
  np.testing.assert_allclose(got.prompt_hidden, want, atol=1e-4)


def test_a_peft_directory_has_the_transposed_factors(tokenizer, tmp_path):
  peft_io.save_peft(tmp_path, adapted(), CFG, tokenizer, 'some/model')
  from safetensors.numpy import load_file
  tensors = load_file(tmp_path / peft_io.WEIGHTS)
  assert len(tensors) == 2 * len(LORA_TARGETS) * CFG.n_layers
  key = 'base_model.model.model.layers.1.self_attn.o_proj.'
  a, b = (adapted()['layers']['wo' + s][1] for s in lora.SUFFIXES)
  delta = tensors[key + 'lora_B.weight'] @ tensors[key + 'lora_A.weight']  # [out, in]
  np.testing.assert_allclose(delta.T, np.einsum('NHR,RD->NHD', a, b).reshape(-1, CFG.d_model), atol=1e-6)
  config = json.loads((tmp_path / peft_io.CONFIG).read_text())
  assert (config['r'], config['lora_alpha'], config['base_model_name_or_path']) == (3, 6.0, 'some/model')
  with pytest.raises(EagrlError, match='no adapters'):
    peft_io.save_peft(tmp_path, {}, PLAIN, tokenizer, 'x')


@pytest.mark.parametrize(('bad', 'field'), [((0, 1.0, ('q_proj',)), 'lora_rank'), ((1, 0.0, ('q_proj',)), 'lora_alpha'),
                                            ((1, 1.0, ('qproj',)), "'?qproj"), ((1, 1.0, ()), 'lora_targets')])
def test_bad_config(bad, field):
  with pytest.raises(EagrlError, match=field):
    LoraConfig(*bad)
