"""GGUF checkpoints (llama.cpp): quantised weights are dequantised, the tokenizer comes from the metadata."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gguf
import numpy as np
from gguf import quants
from jax.sharding import Mesh

from eagrl_jax.lm import gguf_tokenizer, layout, model, rope
from eagrl_jax.lm.config import LMConfig, RopeScaling
from eagrl_jax.lm.gguf_file import ARCHITECTURES, Metadata, open_gguf
from eagrl_jax.lm.tokenizer import Tokenizer
from eagrl_jax.types import EagrlError, Params

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
BLOCK = 2**22  # weights dequantised at once


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
    EagrlError: missing or corrupt file, another architecture, a missing or unknown tensor or field, a tensor of a type
      that is not read or of another size than the metadata say. All but the type are refused before a weight is read.
  """
  path = Path(path).expanduser()
  meta, tensors = open_gguf(path)
  cfg = _config(meta, tensors)
  tokenizer = gguf_tokenizer.build(meta)

  def read(name, index):
    tensor = tensors[_key(name, index)]
    try:
      value = _dequantised(tensor)
    except NotImplementedError as e:
      raise EagrlError(f'{path.name}: tensor {tensor.name!r} is of type {tensor.tensor_type.name}, which is not'
                       ' supported; use a file of another type, such as Q8_0') from e
    if meta.architecture == 'llama' and name in ('wq', 'wk', 'bq', 'bk'):
      value = _unpermute(value, cfg.n_heads if name[1] == 'q' else cfg.n_kv_heads)
    return value

  return layout.assemble(cfg, read, dtype, mesh), cfg, tokenizer


def read_head(path: str | Path) -> tuple[LMConfig, Tokenizer]:
  """What `load_gguf` gives beside the weights, without reading those. Raises as `load_gguf` does."""
  meta, tensors = open_gguf(Path(path).expanduser())
  return _config(meta, tensors), gguf_tokenizer.build(meta)


def read_config(path: str | Path) -> LMConfig:
  """The shape of a `.gguf` checkpoint, without reading its weights. Raises as `load_gguf` does."""
  return _config(*open_gguf(Path(path).expanduser()))


def _config(meta: Metadata, tensors: dict[str, gguf.ReaderTensor]) -> LMConfig:
  heads, d_model, arch = meta.count('attention.head_count'), meta.count('embedding_length'), meta.architecture
  if meta.get(f'{arch}.rope.scaling.type', 'none') not in ('none', None):
    raise EagrlError(f'{meta.file}: {arch}.rope.scaling.type is not supported; use a model without it')
  # A factor by itself is linear scaling; the second name is that of older files.
  for key in (f'{arch}.rope.scaling.factor', f'{arch}.rope.scale_linear'):
    if meta.get(f'{arch}.rope.scaling.type') is None and meta.get(key) not in (None, 0, 1):
      raise EagrlError(f'{meta.file}: {key} is not supported; use a model without it')
  if TOP['embed'] not in tensors:
    raise EagrlError(f'{meta.file}: tensor {TOP["embed"]!r} is missing; download the file again')
  cfg = LMConfig(
      vocab_size=tensors[TOP['embed']].n_elements // d_model,
      d_model=d_model,
      n_layers=meta.count('block_count'),
      n_heads=heads,
      n_kv_heads=meta.count('attention.head_count_kv', heads),
      head_dim=meta.count('attention.key_length', d_model // heads),
      d_ff=meta.count('feed_forward_length'),
      rope_theta=meta.number('rope.freq_base', 10_000.0),
      rope_scaling=None,
      norm_eps=meta.number('attention.layer_norm_rms_epsilon'),
      qkv_bias='blk.0.attn_q.bias' in tensors,
      qk_norm='blk.0.attn_q_norm.weight' in tensors,
      tie_embeddings=TOP['lm_head'] not in tensors,
      max_positions=0 if meta.get(f'{arch}.context_length') is None else meta.count('context_length'),
  )
  if meta.count('rope.dimension_count', cfg.head_dim) != cfg.head_dim:
    raise EagrlError(f'{meta.file}: {arch}.rope.dimension_count is not the head dimension {cfg.head_dim}; rotation of a'
                     ' part of it is not supported')
  _check_sizes(meta.file, cfg, tensors)
  return _with_rope_factors(cfg, tensors[ROPE_FACTORS].data) if ROPE_FACTORS in tensors else cfg


def _check_sizes(file: str, cfg: LMConfig, tensors: dict[str, gguf.ReaderTensor]) -> None:
  """Holds the metadata against the tensors of the file, before anything of the claimed size is made."""
  if cfg.n_layers > len(tensors):
    raise EagrlError(f'{file}: {cfg.n_layers} layers, but {len(tensors)} tensors in all; download the file again')
  known = {_key(name, index): (name, index) for name, index in layout.leaves(cfg)}
  unknown = sorted(set(tensors) - set(known) - {ROPE_FACTORS})
  if unknown:
    raise EagrlError(f'{file}: tensor {unknown[0]!r} belongs to no supported architecture; use a plain'
                     f' {" or ".join(ARCHITECTURES)} model')
  spec = model.declare(cfg)
  for key, (name, index) in known.items():
    if key not in tensors:
      raise EagrlError(f'{file}: tensor {key!r} is missing; download the file again')
    shape = spec[name].shape if index is None else spec['layers'][name].shape[1:]
    found, wanted = tuple(map(int, tensors[key].shape[::-1])), layout.hf_shape(name, shape)
    if found != wanted:
      raise EagrlError(f'{file}: tensor {key!r} has shape {found}, where the metadata say {wanted}; download the file'
                       ' again')


def _key(name: str, index: int | None) -> str:
  return TOP[name] if index is None else f'blk.{index}.{LAYER[name]}'


def _with_rope_factors(cfg: LMConfig, factors: np.ndarray) -> LMConfig:
  """GGUF keeps Llama-3.1 scaling as a divisor a frequency; the released models share all but `factor`."""
  scaled = dataclasses.replace(cfg, rope_scaling=RopeScaling(float(factors.max()), 1.0, 4.0, 8192))
  fits = factors.size == cfg.head_dim // 2
  if not fits or not np.allclose(rope.frequencies(cfg) / factors, rope.frequencies(scaled), rtol=1e-3):
    raise EagrlError(f'{ROPE_FACTORS} is not the Llama-3.1 scaling; use a model with that scaling or none')
  return scaled


def _dequantised(tensor: gguf.ReaderTensor) -> np.ndarray:
  """Rows a few at a time: the library's temporaries are several times its result."""
  if tensor.data.ndim < 2:
    return quants.dequantize(tensor.data, tensor.tensor_type)
  out = np.empty(tensor.shape[::-1], np.float32)
  step = max(1, BLOCK // int(tensor.shape[0]))
  for start in range(0, len(out), step):
    out[start:start + step] = quants.dequantize(tensor.data[start:start + step], tensor.tensor_type)
  return out


def _unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
  """llama.cpp interleaves the two halves of each rotary pair, of a bias too; back to half-split rows."""
  rows, *cols = weight.shape
  return weight.reshape(heads, rows // heads // 2, 2, *cols).swapaxes(1, 2).reshape(weight.shape)
