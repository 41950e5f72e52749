"""Shape of a Llama-family decoder: frozen and hashable, a jit static."""

from __future__ import annotations

import dataclasses

from eagrl_jax.types import EagrlError

LORA_TARGETS = {'q_proj': 'wq', 'k_proj': 'wk', 'v_proj': 'wv', 'o_proj': 'wo', 'gate_proj': 'w_gate',
                'up_proj': 'w_up', 'down_proj': 'w_down'}
REMAT = ('none', 'dots', 'full')
ATTENTION = ('auto', 'xla', 'cudnn', 'splash')


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Llama-3.1 frequency scaling (`rope_type: llama3`)."""

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_position: int


@dataclasses.dataclass(frozen=True)
class Mistral:
  """What the config.json of a Mistral checkpoint says of its positions, for its export; None as null or left out."""

  sliding_window: int | None
  max_position_embeddings: int | None


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Low-rank adapters beside frozen weights, `W + alpha / rank A B` (LoRA, arXiv 2106.09685).

  Attributes:
    rank: columns of A.
    alpha: scale, in units of the rank.
    targets: weights that get one, by their Hugging Face names.
  """

  rank: int
  alpha: float
  targets: tuple[str, ...]

  def __post_init__(self):
    if self.rank < 1:
      raise EagrlError(f'lm.lora_rank={self.rank} must be at least 1; 0 trains every weight')
    if self.alpha <= 0:
      raise EagrlError(f'lm.lora_alpha={self.alpha} must be positive')
    unknown = [t for t in self.targets if t not in LORA_TARGETS]
    if unknown or not self.targets:
      raise EagrlError(f'lm.lora_targets={unknown[0] if unknown else "()"!s} is unknown; choose from'
                       f' {", ".join(LORA_TARGETS)}')

  @property
  def names(self) -> tuple[str, ...]:
    """Our names of the targets, in the order of the table."""
    return tuple(ours for theirs, ours in LORA_TARGETS.items() if theirs in self.targets)

  @property
  def scale(self) -> float:
    return self.alpha / self.rank


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
  max_positions: int = 0  # tokens of a prompt and its answer that the weights were made for; 0 = not known
  compute_dtype: str = 'float32'  # of activations and frozen weights; trained weights stay float32
  remat: str = 'none'  # what the backward pass recomputes: nothing, all but matrix products ('dots'), or whole layers
  attention: str = 'auto'  # of whole prompts (`lm.flash`): 'xla', 'cudnn', 'splash', or what the device has
  lora: LoraConfig | None = None  # trains adapters alone
  mistral: Mistral | None = None  # of a checkpoint of that name; computed as Llama within `max_positions`

  def __post_init__(self):
    for name in ('vocab_size', 'd_model', 'n_layers', 'n_heads', 'n_kv_heads', 'head_dim', 'd_ff'):
      if getattr(self, name) < 1:
        raise EagrlError(f'lm.{name}={getattr(self, name)} must be at least 1')
    if self.n_heads % self.n_kv_heads:
      raise EagrlError(f'lm.n_kv_heads={self.n_kv_heads} must divide lm.n_heads={self.n_heads}')
    if self.head_dim % 2:
      raise EagrlError(f'lm.head_dim={self.head_dim} must be even (rotary pairs)')
    for name, allowed in (('remat', REMAT), ('attention', ATTENTION)):
      if getattr(self, name) not in allowed:
        raise EagrlError(f'lm.{name}={getattr(self, name)!r} is unknown; choose one of {", ".join(allowed)}')
