"""Writes what tests/lm/test_parity.py compares with: logits, attention maps and greedy continuations of tiny models.

Needs torch and transformers (`pip install '.[parity]'`); the tests do not. Run from the repository root:

  python tests/golden/make_lm_golden.py

A file holds the config, the prompt and the outputs; the weights are drawn again by `weights` from a fixed seed.
"""

from __future__ import annotations

import itertools
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
    'mistral': {'model_type': 'mistral', 'tie_word_embeddings': False, 'rope_parameters': DEFAULT, 'head_dim': 6,
                'sliding_window': None},
    'qwen2': {'model_type': 'qwen2', 'tie_word_embeddings': False, 'rope_parameters': DEFAULT},
    'qwen2_tied': {'model_type': 'qwen2', 'tie_word_embeddings': True, 'rope_parameters': DEFAULT},
    'qwen3': {'model_type': 'qwen3', 'tie_word_embeddings': True, 'rope_parameters': DEFAULT},
}
LENGTH, NEW_TOKENS = 11, 64
SMALLEST_GAP = 2e-3  # between the two largest logits: an error of 1e-3 in each cannot swap them
WEIGHT_SEED, FIRST_PROMPT_SEED = 7, 8


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


def weights(config: dict[str, Any], seed: int = WEIGHT_SEED) -> dict[str, np.ndarray]:
  """The seeded weights of a case; large enough that every part matters to the logits."""
  generator = np.random.default_rng(seed)
  return {key: (generator.normal(size=shape) * 0.3 + ('norm' in key)).astype(np.float32)
          for key, shape in sorted(shapes(config).items())}


def torch_model(config: dict[str, Any], tensors: dict[str, np.ndarray]):
  """The model of transformers with these weights, float32, attention written out."""
  import torch
  import transformers

  kind = {k: v for k, v in config.items() if k != 'model_type'}
  model = transformers.AutoModelForCausalLM.from_config(
      transformers.AutoConfig.for_model(config['model_type'], **kind), attn_implementation='eager').float().eval()
  state = {k: torch.from_numpy(v) for k, v in tensors.items()}
  missing, unexpected = model.load_state_dict(state, strict=False)
  if unexpected or set(missing) - {'lm_head.weight'}:
    raise ValueError(f'{config["model_type"]}: missing {missing}, unexpected {unexpected}')
  model.tie_weights()
  return model


def logits_and_attention(model, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Of `tokens [S]`: logits `[S, V]` and attention `[L, N, S, S]`."""
  import torch

  with torch.no_grad():
    out = model(torch.from_numpy(tokens)[None], output_attentions=True)
  return out.logits[0].numpy(), torch.cat(out.attentions).numpy()


def continuation(model, prompt: np.ndarray, new: int = NEW_TOKENS) -> tuple[np.ndarray, float]:
  """Greedy continuation `[new]` past any end token, and the smallest gap between its two largest logits."""
  import torch

  model.generation_config.eos_token_id = None
  model.generation_config.pad_token_id = 0
  tokens = torch.from_numpy(prompt)[None]
  out = model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=new,
                       output_logits=True, return_dict_in_generate=True)
  top = torch.cat(out.logits).topk(2).values
  return out.sequences[0, len(prompt):].numpy().astype(np.int32), float((top[:, 0] - top[:, 1]).min())


def decided_prompt(config: dict[str, Any], model) -> tuple[np.ndarray, np.ndarray, float]:
  """The first seeded prompt whose continuation no rounding can turn: `(prompt, continuation, smallest gap)`."""
  for seed in itertools.count(FIRST_PROMPT_SEED):
    prompt = np.random.default_rng(seed).integers(0, config['vocab_size'], LENGTH)
    new, gap = continuation(model, prompt)
    if gap > SMALLEST_GAP:
      return prompt, new, gap


def main() -> None:
  folder = pathlib.Path(__file__).parent
  for name, case in CASES.items():
    config = SHAPE | case
    model = torch_model(config, weights(config))
    prompt, new, gap = decided_prompt(config, model)
    logits, attention = logits_and_attention(model, prompt)
    np.savez(folder / f'lm_{name}.npz', config=json.dumps(config), prompt=prompt.astype(np.int32), logits=logits,
             attention=attention, greedy=new, smallest_gap=np.float32(gap))
    print(f'{name}: smallest gap {gap:.4f}, {len(set(new.tolist()))} different tokens of {NEW_TOKENS}')


if __name__ == '__main__':
  main()
