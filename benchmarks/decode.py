"""New tokens a second: G samples of each prompt, against transformers' `generate` and a cache shared by hand.

    python -m benchmarks.decode --prompts 1 8
    python -m benchmarks.decode --no_peer --shape qwen2.5-7b --compute_dtype bfloat16

The peers need the `peers` extra. Goals on a CPU: 3 x generate, 1.5 x the shared cache, both float32. `bandwidth` is the
share of the memory's rate that the steps after the first token reach, weights and cached keys read once a step.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from eagrl_jax.lm import model, sampler
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.types import PromptBatch


def ours(cfg: LMConfig, tokens: np.ndarray, group: int, new: int, reps: int) -> tuple[float, float]:
  """Seconds of a whole call, and of its steps after the first token. The weights are held in the compute dtype."""
  init = lambda k: jax.tree.map(lambda x: x.astype(cfg.compute_dtype), model.init(cfg, k))
  params = jax.jit(init)(jax.random.key(0))
  shape = tokens.shape
  prompt = PromptBatch(jnp.asarray(tokens), jnp.ones(shape, bool), jnp.full(shape, -1), jnp.arange(shape[0]))

  def run(new):
    out = sampler.generate(params, cfg, prompt, jax.random.key(1), group=group, max_new=new, temperature=1.0,
                           stop_ids=(), pad_id=0)
    jax.block_until_ready(out)

  whole = measure.seconds(lambda: run(new), reps)
  return whole, whole - measure.seconds(lambda: run(1), reps)


def peers(cfg: LMConfig, tokens: np.ndarray, group: int, new: int, reps: int) -> dict[str, float]:
  import torch
  lm, ids = measure.hugging_face(cfg), torch.tensor(tokens)

  @torch.no_grad()
  def generate():
    lm.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, max_new_tokens=new,
                min_new_tokens=new, num_return_sequences=group, pad_token_id=0)

  @torch.no_grad()
  def shared():
    out = lm(ids, use_cache=True, logits_to_keep=1)
    cache, last = out.past_key_values, out.logits[:, -1].repeat_interleave(group, 0)
    cache.batch_repeat_interleave(group)
    for t in range(new):
      token = torch.multinomial(torch.softmax(last, -1), 1)
      if t + 1 < new:
        last = lm(token, past_key_values=cache, use_cache=True).logits[:, -1]

  total = tokens.shape[0] * group * new
  return {'transformers generate': total / measure.seconds(generate, reps),
          'transformers, prefix shared by hand': total / measure.seconds(shared, reps)}


def step_bytes(cfg: LMConfig, prompts: int, length: int, group: int, new: int) -> float:
  """Read by one step, on average: the weights, the prompts' cache once, half of the answers' own."""
  values = measure.matmul_flops(cfg) // 2 + cfg.vocab_size * cfg.d_model
  cached = 2 * cfg.n_layers * cfg.n_kv_heads * cfg.head_dim * (prompts * length + prompts * group * new / 2)
  return jnp.dtype(cfg.compute_dtype).itemsize * (values + cached)


def roofline(cfg: LMConfig, prompts: int, length: int, group: int, new: int, flops: float, bandwidth: float) -> float:
  """Tokens a second if prompts ran at the matmul rate and each step at the slower of its FLOPs and its bytes."""
  rows = prompts * group
  step = max(step_bytes(cfg, prompts, length, group, new) / bandwidth,
             rows * (measure.matmul_flops(cfg) + 2 * cfg.vocab_size * cfg.d_model) / flops)
  return rows * new / (prompts * length * measure.matmul_flops(cfg) / flops + new * step)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  measure.add_shape_flags(parser, 'smollm2')
  parser.add_argument('--prompts', type=int, nargs='+', default=[1, 8])
  parser.add_argument('--length', type=int, default=512)
  parser.add_argument('--group', type=int, default=8)
  parser.add_argument('--new', type=int, default=64)
  parser.add_argument('--reps', type=int, default=3)
  parser.add_argument('--no_peer', action='store_true', help='ours alone')
  a = parser.parse_args()
  if not a.no_peer:
    measure.check_peer(parser, a.compute_dtype)
  cfg = measure.shape(a)
  flops, bandwidth, source = measure.peaks(cfg.compute_dtype)
  for prompts in a.prompts:
    tokens = np.random.default_rng(0).integers(4, cfg.vocab_size, (prompts, a.length))
    whole, steps = ours(cfg, tokens, a.group, a.new, a.reps)
    size = (prompts, a.length, a.group, a.new)
    # Steps too short for the clock have no share.
    share = (a.new - 1) * step_bytes(cfg, *size) / steps / bandwidth if steps > 0 else None
    others = {None: None} if a.no_peer else peers(cfg, tokens, a.group, a.new, a.reps)
    for name, theirs in others.items():
      measure.report(f'decode {a.shape} {prompts} x {a.group} x {a.new} after {a.length}', 'tokens/s',
                     prompts * a.group * a.new / whole, theirs, name, roofline(cfg, *size, flops, bandwidth),
                     bandwidth=share, peak_gb_s=bandwidth / 1e9, peak=source, compute_dtype=a.compute_dtype)


if __name__ == '__main__':
  main()
