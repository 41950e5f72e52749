"""New tokens a second: G samples of each prompt, against transformers' `generate` and a cache shared by hand.

    python -m benchmarks.decode --prompts 1 8

Needs the `peers` extra. Goals on a CPU: 3 x generate, 1.5 x the shared cache, both float32.
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


def ours(cfg: LMConfig, tokens: np.ndarray, group: int, new: int, reps: int) -> float:
  params = jax.jit(lambda k: model.init(cfg, k))(jax.random.key(0))
  shape = tokens.shape
  prompt = PromptBatch(jnp.asarray(tokens), jnp.ones(shape, bool), jnp.full(shape, -1), jnp.arange(shape[0]))

  def run():
    out = sampler.generate(params, cfg, prompt, jax.random.key(1), group=group, max_new=new, temperature=1.0,
                           stop_ids=(), pad_id=0)
    jax.block_until_ready(out)

  return tokens.shape[0] * group * new / measure.seconds(run, reps)


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


def roofline(cfg: LMConfig, prompts: int, length: int, group: int, new: int) -> float:
  """Tokens a second if prompts ran at the matmul rate and each step at the slower of its FLOPs and its bytes."""
  flops, bandwidth = measure.ceilings()
  rows = prompts * group
  weights = 4 * (measure.matmul_flops(cfg) // 2 + cfg.vocab_size * cfg.d_model)
  cached = 2 * 4 * cfg.n_layers * cfg.n_kv_heads * cfg.head_dim * (prompts * length + rows * new / 2)
  step = max((weights + cached) / bandwidth,
             rows * (measure.matmul_flops(cfg) + 2 * cfg.vocab_size * cfg.d_model) / flops)
  return rows * new / (prompts * length * measure.matmul_flops(cfg) / flops + new * step)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--shape', choices=measure.SHAPES, default='smollm2')
  parser.add_argument('--prompts', type=int, nargs='+', default=[1, 8])
  parser.add_argument('--length', type=int, default=512)
  parser.add_argument('--group', type=int, default=8)
  parser.add_argument('--new', type=int, default=64)
  parser.add_argument('--reps', type=int, default=3)
  a = parser.parse_args()
  cfg = measure.SHAPES[a.shape]
  for prompts in a.prompts:
    tokens = np.random.default_rng(0).integers(4, cfg.vocab_size, (prompts, a.length))
    mine, limit = ours(cfg, tokens, a.group, a.new, a.reps), roofline(cfg, prompts, a.length, a.group, a.new)
    for name, theirs in peers(cfg, tokens, a.group, a.new, a.reps).items():
      measure.report(f'decode {a.shape} {prompts} x {a.group} x {a.new} after {a.length}', 'tokens/s', mine, theirs,
                     name, limit)


if __name__ == '__main__':
  main()
