"""GGUF checkpoints (llama.cpp): quantised weights are dequantised, the tokenizer comes from the metadata."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import quants
from jax.sharding import Mesh
from tokenizers import Regex, normalizers, pre_tokenizers

from eagrl_jax.lm import bpe, layout, rope
from eagrl_jax.lm.config import LMConfig, RopeScaling
from eagrl_jax.lm.tokenizer import Tokenizer
from eagrl_jax.types import EagrlError, Params

ARCHITECTURES = ('llama', 'qwen2', 'qwen3')
TOP = {'embed': 'token_embd.weight', 'final_norm': 'output_norm.weight', 'lm_head': 'output.weight'}
LAYER = {
    'attn_norm': 'attn_norm.weight',
    'wq': 'attn_q.weight',
    'wk': 'attn_k.weight',
    'wv': 'attn_v.weight',
    'wo': 'attn_output.weight',
    'bq': 'attn_q.bias',
    'bk': 'attn_k.bias',
    'bv': 'attn_v.bias',
    'q_norm': 'attn_q_norm.weight',
    'k_norm': 'attn_k_norm.weight',
    'mlp_norm': 'ffn_norm.weight',
    'w_gate': 'ffn_gate.weight',
    'w_up': 'ffn_up.weight',
    'w_down': 'ffn_down.weight',
}
ROPE_FACTORS = 'rope_freqs.weight'
TIKTOKEN_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
                  r'| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+')


def load_gguf(path: str | Path, dtype: layout.Dtype = np.float32, mesh: Mesh | None = None
              ) -> tuple[Params, LMConfig, Tokenizer]:
  """Loads a `.gguf` file of the llama, qwen2 or qwen3 architecture.

  Args:
    path: the file.
    dtype: of the weights in memory.
    mesh: the devices that the weights go to, one tensor at a time; None leaves them on the host, as numpy arrays.

  Returns:
    `(params, config, tokenizer)`.

  Raises:
    EagrlError: missing or corrupt file, another architecture, a missing or unknown tensor or field.
  """
  path = Path(path).expanduser()
  meta, tensors = _open(path)
  cfg = _config(meta, tensors)

  def read(name, index):
    key = TOP[name] if index is None else f'blk.{index}.{LAYER[name]}'
    if key not in tensors:
      raise EagrlError(f'{path.name}: tensor {key!r} is missing; download the file again')
    tensor = tensors[key]
    value = quants.dequantize(tensor.data, tensor.tensor_type)
    if meta.architecture == 'llama' and name in ('wq', 'wk'):
      value = _unpermute(value, cfg.n_heads if name == 'wq' else cfg.n_kv_heads)
    return value

  known = {TOP[n] if i is None else f'blk.{i}.{LAYER[n]}' for n, i in layout.leaves(cfg)} | {ROPE_FACTORS}
  unknown = sorted(set(tensors) - known)
  if unknown:
    raise EagrlError(f'{path.name}: tensor {unknown[0]!r} belongs to no supported architecture; use a plain'
                     f' {" or ".join(ARCHITECTURES)} model')
  return layout.assemble(cfg, read, dtype, mesh), cfg, _tokenizer(meta)


def read_config(path: str | Path) -> LMConfig:
  """The shape of a `.gguf` checkpoint, without reading its weights. Raises as `load_gguf` does."""
  return _config(*_open(Path(path).expanduser()))


def _open(path: Path) -> tuple[_Metadata, dict[str, gguf.ReaderTensor]]:
  if not path.is_file():
    raise EagrlError(f'lm.checkpoint={path} is not a file; give the path of a .gguf file')
  try:
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
  except (ValueError, KeyError, IndexError, OSError, OverflowError, struct.error, UnicodeDecodeError) as e:
    raise EagrlError(f'{path.name} is not a readable GGUF file ({type(e).__name__}); download it again') from e
  return _Metadata(path.name, fields), {t.name: t for t in reader.tensors}


class _Metadata:
  """Fields of the file, with an error that names the missing one."""

  def __init__(self, file: str, fields: dict[str, Any]):
    self._file, self._fields = file, fields
    self.architecture: str = self['general.architecture']
    if self.architecture not in ARCHITECTURES:
      raise EagrlError(f'{file}: general.architecture={self.architecture!r} is not supported; use one of'
                       f' {", ".join(ARCHITECTURES)}')

  def __getitem__(self, key: str) -> Any:
    if key not in self._fields:
      raise EagrlError(f'{self._file}: metadata field {key!r} is missing; download the file again')
    return self._fields[key]

  def get(self, key: str, default: Any = None) -> Any:
    return self._fields.get(key, default)

  def model(self, key: str) -> Any:
    return self[f'{self.architecture}.{key}']


def _config(meta: _Metadata, tensors: dict[str, gguf.ReaderTensor]) -> LMConfig:
  heads, d_model, arch = meta.model('attention.head_count'), meta.model('embedding_length'), meta.architecture
  head_dim = meta.get(f'{arch}.attention.key_length', d_model // heads)
  theta = float(meta.get(f'{arch}.rope.freq_base', 10_000.0))
  if meta.get(f'{arch}.rope.scaling.type', 'none') not in ('none', None):
    raise EagrlError(f'{arch}.rope.scaling.type is not supported; use a model without it')
  if TOP['embed'] not in tensors:
    raise EagrlError(f'tensor {TOP["embed"]!r} is missing; download the file again')
  cfg = LMConfig(
      vocab_size=int(tensors[TOP['embed']].shape[1]),
      d_model=d_model,
      n_layers=meta.model('block_count'),
      n_heads=heads,
      n_kv_heads=meta.get(f'{arch}.attention.head_count_kv', heads),
      head_dim=head_dim,
      d_ff=meta.model('feed_forward_length'),
      rope_theta=theta,
      rope_scaling=None,
      norm_eps=meta.model('attention.layer_norm_rms_epsilon'),
      qkv_bias='blk.0.attn_q.bias' in tensors,
      qk_norm='blk.0.attn_q_norm.weight' in tensors,
      tie_embeddings=TOP['lm_head'] not in tensors,
  )
  return _with_rope_factors(cfg, tensors[ROPE_FACTORS].data) if ROPE_FACTORS in tensors else cfg


def _with_rope_factors(cfg: LMConfig, factors: np.ndarray) -> LMConfig:
  """GGUF keeps Llama-3.1 scaling as a divisor a frequency; the released models share all but `factor`."""
  scaled = dataclasses.replace(cfg, rope_scaling=RopeScaling(float(factors.max()), 1.0, 4.0, 8192))
  if not np.allclose(rope.frequencies(cfg) / factors, rope.frequencies(scaled), rtol=1e-3):
    raise EagrlError(f'{ROPE_FACTORS} is not the Llama-3.1 scaling; use a model with that scaling or none')
  return scaled


def _unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
  """llama.cpp interleaves the two halves of each rotary pair; back to half-split rows."""
  rows, cols = weight.shape
  return weight.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def _tokenizer(meta: _Metadata) -> Tokenizer:
  if meta['tokenizer.ggml.model'] != 'gpt2':
    raise EagrlError(f'tokenizer.ggml.model={meta["tokenizer.ggml.model"]!r} is not supported; use a model with a'
                     ' byte-level BPE tokenizer (gpt2)')
  tokens, types = meta['tokenizer.ggml.tokens'], meta['tokenizer.ggml.token_type']
  merges = [tuple(m.split(' ', 1)) for m in meta['tokenizer.ggml.merges']]
  whole = (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED, gguf.TokenType.UNKNOWN)
  special = [t for t, kind in zip(tokens, types) if kind in whole]
  kind = meta.get('tokenizer.ggml.pre', 'default')
  fast = bpe.build({t: i for i, t in enumerate(tokens)}, merges, split=_pre_tokenizer(kind), special=special,
                   ignore_merges=kind == 'llama-bpe')
  if kind == 'qwen2':
    fast.normalizer = normalizers.NFC()
  eos = tokens[meta['tokenizer.ggml.eos_token_id']]
  ids = (meta.get(f'tokenizer.ggml.{k}_token_id') for k in ('padding', 'bos'))
  pad, bos = (None if i is None else tokens[i] for i in ids)
  return Tokenizer(fast, eos, pad, bos, meta.get('tokenizer.chat_template'))


def _pre_tokenizer(kind: str) -> pre_tokenizers.PreTokenizer:
  """The splits behind llama.cpp's names for them."""
  if kind == 'smollm':
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False)])
  digits = {'qwen2': '', 'llama-bpe': '{1,3}'}.get(kind)
  if digits is None:
    raise EagrlError(f'tokenizer.ggml.pre={kind!r} is not supported; use a smollm, qwen2 or llama-bpe tokenizer')
  return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(TIKTOKEN_SPLIT.format(digits=digits)), 'isolated'),
                                  pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
