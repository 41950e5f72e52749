"""What every benchmark shares: shapes, timing, the machine's own ceilings, and the line that is printed at the end.

A peer runs in the same process, on the same threads, right beside ours: on a shared machine only such pairs compare.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from eagrl_jax.lm.config import ATTENTION, LMConfig

SHAPES = {
    'micro': LMConfig(vocab_size=521, d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=64),
    'smollm2': LMConfig(vocab_size=49_152, d_model=576, n_layers=30, n_heads=9, n_kv_heads=3, head_dim=64, d_ff=1536,
                        rope_theta=100_000.0),
    'tiny': LMConfig(vocab_size=2_048, d_model=256, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=64, d_ff=1024),
    'qwen2.5-1.5b': LMConfig(vocab_size=151_936, d_model=1536, n_layers=28, n_heads=12, n_kv_heads=2, head_dim=128,
                             d_ff=8960, rope_theta=1e6, norm_eps=1e-6, qkv_bias=True),
    'qwen2.5-7b': LMConfig(vocab_size=152_064, d_model=3584, n_layers=28, n_heads=28, n_kv_heads=4, head_dim=128,
                           d_ff=18_944, rope_theta=1e6, norm_eps=1e-6, qkv_bias=True, tie_embeddings=False),
}
# By device kind: dense bfloat16 FLOP/s and memory bytes/s, from the vendor's data sheets.
DATA_SHEET = {'NVIDIA H100 80GB HBM3': (989e12, 3.35e12), 'NVIDIA H200': (989e12, 4.8e12)}


def threads() -> int:
  """Cores this process may use: what XLA takes, and what torch is told to take."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def seconds(fn: Callable[[], Any], reps: int) -> float:
  """Median wall time of `fn`, which blocks until it is done, after one call that may compile."""
  fn()
  times = []
  for _ in range(reps):
    begun = time.perf_counter()
    fn()
    times.append(time.perf_counter() - begun)
  return statistics.median(times)


def ceilings(dtype: str = 'float32') -> tuple[float, float]:
  """Matmul rate in FLOP/s and read bandwidth in bytes/s that JAX reaches in this process."""
  size, megabytes = (1536, 256) if jax.default_backend() == 'cpu' else (8192, 4096)
  a = jnp.ones((size, size), dtype)
  multiply, total = jax.jit(jnp.matmul), jax.jit(jnp.sum)
  flops = 2 * size**3 / seconds(lambda: multiply(a, a).block_until_ready(), 5)
  x = jnp.ones(megabytes * 2**18)
  return flops, x.nbytes / seconds(lambda: total(x).block_until_ready(), 5)


def peaks(dtype: str) -> tuple[float, float, str]:
  """What a fraction is a fraction of: FLOP/s, bytes/s, and where they come from."""
  kind = jax.devices()[0].device_kind
  if dtype == 'bfloat16' and kind in DATA_SHEET:
    return *DATA_SHEET[kind], 'data sheet'
  return *ceilings(dtype), 'measured'


def add_shape_flags(parser: argparse.ArgumentParser, default: str) -> None:
  """`--shape`, and how it is computed: read back by `shape`."""
  parser.add_argument('--shape', choices=SHAPES, default=default)
  parser.add_argument('--compute_dtype', choices=['float32', 'bfloat16'], default='float32')
  parser.add_argument('--attention', choices=ATTENTION, default='auto', help='kernel of whole prompts')


def shape(a: argparse.Namespace) -> LMConfig:
  return dataclasses.replace(SHAPES[a.shape], compute_dtype=a.compute_dtype, attention=a.attention)


def matmul_flops(cfg: LMConfig) -> int:
  """Of the layers' weights, a token, forward: two for each weight."""
  attention = 2 * cfg.d_model * cfg.head_dim * (cfg.n_heads + cfg.n_kv_heads)
  return 2 * cfg.n_layers * (attention + 3 * cfg.d_model * cfg.d_ff)


def attention_flops(cfg: LMConfig, prompts: int, length: int, answers: int, new: int) -> float:
  """Of scores and mixing, forward: `prompts` of `length` tokens, each read once, `answers` of `new` that see one."""
  pairs = prompts * length**2 / 2 + answers * new * (length + new / 2)
  return 4 * cfg.n_layers * cfg.n_heads * cfg.head_dim * pairs


def report(name: str, unit: str, ours: float, peer: float | None, peer_name: str | None, roofline: float | None,
           **more: Any) -> None:
  """Prints the case as one JSON line; `ratio` above 1 means that ours is better.

  Args:
    peer: None where nothing runs beside ours; `ratio` is None then.
    roofline: what the machine's ceilings allow, in `unit`; None where it was not worked out.
  """
  ratio = None if peer is None else ours / peer if unit.endswith('/s') else peer / ours
  line = {'name': name, 'unit': unit, 'ours': ours, 'peer': peer, 'peer_name': peer_name, 'ratio': ratio,
          'roofline': roofline, 'threads': threads(), 'device': jax.devices()[0].device_kind, 'jax': jax.__version__,
          **more}
  print(json.dumps({k: float(f'{v:.4g}') if isinstance(v, float) else v for k, v in line.items()}), flush=True)


def check_peer(parser: argparse.ArgumentParser, compute_dtype: str) -> None:
  """Refuses to set ours beside torch models that compute otherwise: they are float32, on the CPU."""
  if compute_dtype != 'float32' or jax.default_backend() != 'cpu':
    parser.error('the peers compute in float32 on the CPU: leave out --compute_dtype, or add --no_peer')


def hugging_face(cfg: LMConfig, attention: str = 'sdpa') -> Any:
  """A randomly initialised transformers model of the same shape, float32, in evaluation mode."""
  import torch
  import transformers
  torch.set_num_threads(threads())
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
      vocab_size=cfg.vocab_size, hidden_size=cfg.d_model, num_hidden_layers=cfg.n_layers,
      num_attention_heads=cfg.n_heads, num_key_value_heads=cfg.n_kv_heads, head_dim=cfg.head_dim,
      intermediate_size=cfg.d_ff, tie_word_embeddings=cfg.tie_embeddings, max_position_embeddings=4096,
      attn_implementation=attention)
  return transformers.LlamaForCausalLM(config).eval()
