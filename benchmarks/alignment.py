"""What reading attention costs: the forward pass with the tap against the same one without, and against full maps.

    python -m benchmarks.alignment
    python -m benchmarks.alignment --lengths 512 --remat full

Without recomputation, 8 x 1,024 tokens at SmolLM2's shape need more than 24 GB in the backward pass, tap or no tap.
So a batch of more than 4,096 tokens is computed again, layer by layer, unless `--remat` says otherwise.
The memory case needs the `peers` extra. Goals: forward 1.05 x, forward and backward 1.10 x, a tenth of the maps' bytes.
`roofline` is the time of the pass without the tap at the machine's matmul rate, a backward pass as two forward ones and
recomputation not counted; of bytes, the rows that are handed out.
"""

from __future__ import annotations

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from eagrl_jax.lm import forward, model
from eagrl_jax.lm.config import REMAT, LMConfig
from eagrl_jax.rl import alignment

FEATURES = 64
KEPT = 4096  # tokens of a batch whose activations are kept for the backward pass


def case(cfg: LMConfig, rows: int, length: int, read: int):
  """Prompts of `length - read` tokens with one answer of `read`, of which every token's attention is read."""
  rng = np.random.default_rng(0)
  split = length - read
  tokens = jnp.asarray(rng.integers(4, cfg.vocab_size, (rows, length)))
  feature = np.broadcast_to(np.arange(split) * FEATURES // split, (rows, split))
  valid = jnp.ones((rows, split), bool)
  indicator = alignment.feature_indicator(jnp.asarray(feature), valid, FEATURES)
  answer = jnp.ones((rows, 1, read), bool)
  tap = forward.AttentionTap(indicator, alignment.tap_rows(answer), alignment.tap_heads((), cfg.n_heads))
  salience = jnp.asarray(rng.dirichlet(np.ones(FEATURES), (rows, 1)), jnp.float32)
  return (tokens[:, :split], valid, tokens[:, None, split:], answer), tap, salience


def loss(params, cfg, batch, tap, salience):
  """A stand-in for the policy loss, plus the alignment loss when there is a tap."""
  out = forward.forward_shared(params, cfg, *batch, tap)
  total = jnp.mean(jnp.square(out.hidden.astype(jnp.float32)))
  if tap is not None:
    policy = alignment.policy_salience(out.attention, tap.indicator.sum(1))
    total += jnp.mean(alignment.alignment_loss(salience, policy))
  return total


def flops(cfg: LMConfig, rows: int, length: int, read: int) -> float:
  """Of a forward pass without the tap and without the head."""
  return measure.matmul_flops(cfg) * rows * length + measure.attention_flops(cfg, rows, length - read, rows, read)


def map_bytes(cfg: LMConfig, batch) -> int:
  """Bytes of the maps that transformers hands out for these tokens."""
  import torch
  tokens = torch.tensor(np.concatenate([batch[0], batch[2][:, 0]], 1)[:1])
  with torch.no_grad():
    out = measure.hugging_face(cfg, 'eager')(tokens, output_attentions=True, use_cache=False, logits_to_keep=1)
  return sum(m.nbytes for m in out.attentions) * len(batch[0])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--shape', choices=measure.SHAPES, default='smollm2')
  parser.add_argument('--rows', type=int, default=8)
  parser.add_argument('--lengths', type=int, nargs='+', default=[512, 1024])
  parser.add_argument('--read', type=int, default=32, help='answer tokens whose attention is read')
  parser.add_argument('--remat', choices=REMAT, help=f'of both passes; none up to {KEPT} tokens a batch, full beyond')
  parser.add_argument('--reps', type=int, default=3)
  parser.add_argument('--cases', choices=('time', 'memory'), nargs='+', default=['time', 'memory'],
                      help='memory alone is planned, not run')
  parser.add_argument('--no_peer', action='store_true', help='leave out the memory case, which needs torch')
  a = parser.parse_args()
  cfg = measure.SHAPES[a.shape]
  params = jax.jit(lambda k: model.init(cfg, k))(jax.random.key(0))
  peak, _, source = measure.peaks(cfg.compute_dtype)
  for length in a.lengths:
    cfg = dataclasses.replace(cfg, remat=a.remat or ('none' if a.rows * length <= KEPT else 'full'))
    batch, tap, salience = case(cfg, a.rows, length, a.read)
    shape = f'{a.shape} {a.rows} x {length}, remat {cfg.remat}'

    def both(fn, cfg=cfg, batch=batch, tap=tap, salience=salience):
      """A pass compiled with the tap and without."""
      return (jax.jit(lambda p, t: fn(p, cfg, batch, t, salience)).lower(params, tap).compile(),
              jax.jit(lambda p: fn(p, cfg, batch, None, salience)).lower(params).compile())

    forward_pass = both(loss)
    if 'time' in a.cases:
      passes_of = {'forward': (1, forward_pass), 'forward and backward': (3, both(jax.grad(loss)))}
      for name, (passes, (with_tap, without)) in passes_of.items():
        mine = measure.seconds(lambda: jax.block_until_ready(with_tap(params, tap)), a.reps)
        plain = measure.seconds(lambda: jax.block_until_ready(without(params)), a.reps)
        measure.report(f'attention rows, {name}, {shape}', 's', mine, plain, 'the same pass without',
                       passes * flops(cfg, a.rows, length, a.read) / peak, peak_tflops=peak / 1e12, peak=source)
    if 'memory' in a.cases and not a.no_peer:
      one, other = (c.memory_analysis().temp_size_in_bytes for c in forward_pass)
      measure.report(f'attention rows, extra bytes, {shape}', 'bytes', float(max(one - other, 1)),
                     float(map_bytes(cfg, batch)), 'transformers output_attentions=True',
                     4.0 * cfg.n_layers * a.rows * FEATURES)


if __name__ == '__main__':
  main()
