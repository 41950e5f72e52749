"""Shape of a Llama-family decoder: frozen and hashable, a jit static."""

from __future__ import annotations

import dataclasses

from eagrl_jax.types import EagrlError


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Llama-3.1 frequency scaling (`rope_type: llama3`)."""

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_position: int


@dataclasses.dataclass(frozen=True)
class LMConfig:
  """RMSNorm, RoPE, grouped-query attention, SwiGLU; optional QKV bias (Qwen2) and QK norm (Qwen3)."""

  vocab_size: int
  d_model: int
  n_layers: int
  n_heads: int
  n_kv_heads: int
  head_dim: int
  d_ff: int
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | None = None
  norm_eps: float = 1e-5
  qkv_bias: bool = False
  qk_norm: bool = False
  tie_embeddings: bool = True
  compute_dtype: str = 'float32'  # activations; parameters stay float32 unless loaded otherwise
  remat: bool = False  # recompute each layer in the backward pass

  def __post_init__(self):
    if self.n_heads % self.n_kv_heads:
      raise EagrlError(f'lm.n_kv_heads={self.n_kv_heads} must divide lm.n_heads={self.n_heads}')
    if self.head_dim % 2:
      raise EagrlError(f'lm.head_dim={self.head_dim} must be even (rotary pairs)')
