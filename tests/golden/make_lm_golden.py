"""Writes the golden logits and attention maps of tests/lm/test_parity.py.

Needs torch and transformers; the tests do not. Run from the repository root:

  python tests/golden/make_lm_golden.py

A file holds the config and the outputs; the weights are drawn again by `weights` from a fixed seed.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

SHAPE = {'vocab_size': 61, 'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 4,
         'num_key_value_heads': 2, 'head_dim': 8, 'intermediate_size': 48, 'rms_norm_eps': 1e-5, 'hidden_act': 'silu',
         'attention_dropout': 0.0, 'max_position_embeddings': 512}
LLAMA3 = {'rope_type': 'llama3', 'rope_theta': 10_000.0, 'factor': 4.0, 'low_freq_factor': 1.0,
          'high_freq_factor': 4.0, 'original_max_position_embeddings': 32}
DEFAULT = {'rope_type': 'default', 'rope_theta': 5_000.0}
CASES: dict[str, dict[str, Any]] = {
    'llama': {'model_type': 'llama', 'tie_word_embeddings': True, 'rope_parameters': DEFAULT},
    'llama3': {'model_type': 'llama', 'tie_word_embeddings': False, 'rope_parameters': LLAMA3},
    'qwen2': {'model_type': 'qwen2', 'tie_word_embeddings': False, 'rope_parameters': DEFAULT},
    'qwen3': {'model_type': 'qwen3', 'tie_word_embeddings': True, 'rope_parameters': DEFAULT},
}
LENGTH = 11


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
  """Checkpoint keys and shapes of a case, `[out, in]`, written from the architectures' papers, not from our tables."""
  d, f, v = config['hidden_size'], config['intermediate_size'], config['vocab_size']
  h = config['head_dim']
  q, kv = config['num_attention_heads'] * h, config['num_key_value_heads'] * h
  out = {'model.embed_tokens.weight': (v, d), 'model.norm.weight': (d,)}
  if not config['tie_word_embeddings']:
    out['lm_head.weight'] = (v, d)
  for i in range(config['num_hidden_layers']):
    p = f'model.layers.{i}.'
    out |= {p + 'input_layernorm.weight': (d,), p + 'post_attention_layernorm.weight': (d,),
            p + 'self_attn.q_proj.weight': (q, d), p + 'self_attn.k_proj.weight': (kv, d),
            p + 'self_attn.v_proj.weight': (kv, d), p + 'self_attn.o_proj.weight': (d, q),
            p + 'mlp.gate_proj.weight': (f, d), p + 'mlp.up_proj.weight': (f, d), p + 'mlp.down_proj.weight': (d, f)}
    if config['model_type'] == 'qwen2':
      out |= {p + f'self_attn.{n}_proj.bias': (size,) for n, size in (('q', q), ('k', kv), ('v', kv))}
    if config['model_type'] == 'qwen3':
      out |= {p + f'self_attn.{n}_norm.weight': (h,) for n in 'qk'}
  return out


def weights(config: dict[str, Any]) -> dict[str, np.ndarray]:
  """The seeded weights of a case; large enough that every part matters to the logits."""
  generator = np.random.default_rng(7)
  return {key: (generator.normal(size=shape) * 0.3 + ('norm' in key)).astype(np.float32)
          for key, shape in sorted(shapes(config).items())}


def tokens(config: dict[str, Any]) -> np.ndarray:
  return np.random.default_rng(8).integers(0, config['vocab_size'], LENGTH)


def main() -> None:
  import torch
  import transformers

  folder = pathlib.Path(__file__).parent
  for name, case in CASES.items():
    config = SHAPE | case
    kind = {k: v for k, v in config.items() if k != 'model_type'}
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(config['model_type'], **kind), attn_implementation='eager').float().eval()
    state = {k: torch.from_numpy(v) for k, v in weights(config).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {'lm_head.weight'}, (missing, unexpected)
    model.tie_weights()
    with torch.no_grad():
      out = model(torch.from_numpy(tokens(config))[None], output_attentions=True)
    np.savez(folder / f'lm_{name}.npz', config=json.dumps(config), logits=out.logits[0].numpy(),
             attention=out.attentions[-1][0].numpy())


if __name__ == '__main__':
  main()
