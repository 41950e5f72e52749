"""A checkpoint's own description of itself -> `LMConfig`; refuses what the decoder does not compute."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from eagrl_jax.lm.config import LMConfig, Mistral, RopeScaling
from eagrl_jax.types import EagrlError

ARCHITECTURES = ('llama', 'mistral', 'qwen2', 'qwen3')  # SmolLM2 and SmolLM are 'llama'
UNBOUNDED = 32_768  # positions to state of a model that has no limit of its own: rotary ones have no end
SLIDING_WINDOW = 4096  # of a config that has one and does not say how long, in transformers
CLASS_NAMES = {'llama': 'LlamaForCausalLM', 'mistral': 'MistralForCausalLM', 'qwen2': 'Qwen2ForCausalLM',
               'qwen3': 'Qwen3ForCausalLM'}


def from_hf(c: dict[str, Any]) -> LMConfig:
  """Reads a `config.json`.

  Raises:
    EagrlError: another architecture, a missing field, or a feature that would change the result.
  """
  kind = c.get('model_type')
  if kind not in ARCHITECTURES:
    raise EagrlError(f'config.json: model_type={kind!r} is not supported; use one of {", ".join(ARCHITECTURES)}')
  rope = c.get('rope_scaling') or c.get('rope_parameters') or {}  # of both, transformers 5 takes the older
  if not isinstance(rope, dict):
    raise EagrlError('config.json: rope_parameters is no table; copy it again from its source')
  _refuse(c, kind)
  try:
    heads, d_model = _count(c, 'num_attention_heads'), _count(c, 'hidden_size')
    window, stated = _window(c, kind), _count_or_none(c, 'max_position_embeddings')
    return LMConfig(
        vocab_size=_count(c, 'vocab_size'),
        d_model=d_model,
        n_layers=_count(c, 'num_hidden_layers'),
        n_heads=heads,
        n_kv_heads=_count(c, 'num_key_value_heads', heads),
        head_dim=_count(c, 'head_dim', d_model // heads),
        d_ff=_count(c, 'intermediate_size'),
        rope_theta=_positive(rope, 'rope_theta', _positive(c, 'rope_theta', 10_000.0)),
        rope_scaling=_rope_scaling(rope),
        norm_eps=_positive(c, 'rms_norm_eps'),
        qkv_bias=kind == 'qwen2',
        qk_norm=kind == 'qwen3',
        tie_embeddings=bool(c.get('tie_word_embeddings', False)),
        # Within a sliding window attention is over everything, as we compute it.
        max_positions=min((n for n in (window, stated) if n is not None), default=0),
        mistral=Mistral(window, stated) if kind == 'mistral' else None,
    )
  except KeyError as e:
    raise EagrlError(f'config.json lacks {e.args[0]!r}; copy it again from its source') from e


def bounded(cfg: LMConfig) -> LMConfig:
  """The same model with a number of positions to state: without one, libraries take a Llama for one of 2,048."""
  return cfg if cfg.max_positions or cfg.mistral else dataclasses.replace(cfg, max_positions=UNBOUNDED)


def to_hf(cfg: LMConfig) -> dict[str, Any]:
  """The `config.json` of the same model for transformers 5 (`rope_parameters`) and 4 (`rope_theta`, `rope_scaling`).

  It lacks the ids of special tokens, which the tokenizer knows.
  """
  if cfg.qkv_bias and cfg.qk_norm:
    raise EagrlError('lm: no Hugging Face architecture has both qkv_bias and qk_norm; switch one of them off')
  kind = 'qwen2' if cfg.qkv_bias else 'qwen3' if cfg.qk_norm else 'mistral' if cfg.mistral else 'llama'
  positions = dataclasses.asdict(cfg.mistral) if cfg.mistral else {'max_position_embeddings': cfg.max_positions}
  scaling: dict[str, Any] = {}
  if cfg.rope_scaling is not None:
    s = cfg.rope_scaling
    scaling = {'rope_type': 'llama3', 'factor': s.factor, 'low_freq_factor': s.low_freq_factor,
               'high_freq_factor': s.high_freq_factor, 'original_max_position_embeddings': s.original_max_position}
  return {
      'architectures': [CLASS_NAMES[kind]],
      'model_type': kind,
      'transformers_version': '5.0.0',  # whose layout it is; without one, 4 takes the tokenizer for a faulty one
      'vocab_size': cfg.vocab_size,
      'hidden_size': cfg.d_model,
      'num_hidden_layers': cfg.n_layers,
      'num_attention_heads': cfg.n_heads,
      'num_key_value_heads': cfg.n_kv_heads,
      'head_dim': cfg.head_dim,
      'intermediate_size': cfg.d_ff,
      'rope_parameters': {'rope_type': 'default', 'rope_theta': cfg.rope_theta} | scaling,
      'rope_theta': cfg.rope_theta,
      **({'rope_scaling': scaling} if scaling else {}),
      'rms_norm_eps': cfg.norm_eps,
      'tie_word_embeddings': cfg.tie_embeddings,
      'hidden_act': 'silu',
      # A window of null is none; one that is left out would be the library's own.
      **{name: n for name, n in positions.items() if n or name == 'sliding_window'},
  }


def _refuse(c: dict[str, Any], kind: str) -> None:
  if c.get('hidden_act', 'silu') != 'silu':
    raise EagrlError(f'config.json: hidden_act={c["hidden_act"]!r} is not supported; only silu is')
  if (kind != 'qwen2' and c.get('attention_bias')) or c.get('mlp_bias'):
    raise EagrlError('config.json: attention_bias and mlp_bias are not supported outside qwen2; use another checkpoint')


def _window(c: dict[str, Any], kind: str) -> int | None:
  windowed = kind == 'mistral' or c.get('use_sliding_window')
  return _count_or_none({'sliding_window': SLIDING_WINDOW} | c, 'sliding_window') if windowed else None


def _rope_scaling(rope: dict[str, Any]) -> RopeScaling | None:
  kind = rope.get('rope_type') or rope.get('type') or 'default'
  if kind == 'default':
    return None
  if kind != 'llama3':
    raise EagrlError(f'config.json: rope_type={kind!r} is not supported; only default and llama3 are')
  return RopeScaling(_positive(rope, 'factor'), _positive(rope, 'low_freq_factor'), _positive(rope, 'high_freq_factor'),
                     _count(rope, 'original_max_position_embeddings'))


def _positive(c: dict[str, Any], key: str, default: float | None = None) -> float:
  """A number above zero; the default where it is absent or null."""
  value = c[key] if default is None else c.get(key)
  value = default if value is None else value
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
    raise EagrlError(f'config.json: {key}={value!r:.40} is no positive number; copy it again from its source')
  return float(value)


def _count(c: dict[str, Any], key: str, default: int | None = None) -> int:
  value = _positive(c, key, default)
  if value != int(value):
    raise EagrlError(f'config.json: {key}={value} is no whole number; copy it again from its source')
  return int(value)


def _count_or_none(c: dict[str, Any], key: str) -> int | None:
  return None if c.get(key) is None else _count(c, key)
