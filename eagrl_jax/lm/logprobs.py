"""Next-token log-probabilities and entropies without ever holding `[rows, V]`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.matmul import matmul
from eagrl_jax.types import Array, ArrayLike, Params

CHUNK_LOGITS = 2**23  # logits held at once: 32 MiB
FEW_ROWS = 64  # up to which a CPU multiplies a wide head faster from its own side
WIDE_HEAD = 2**13


def logits(params: Params, cfg: LMConfig, hidden: Array) -> Array:
  """Unnormalised log-probabilities `[..., V]`, float32 at least, of normed states `hidden [..., D]`."""
  hidden = hidden.astype(cfg.compute_dtype)
  head = params['embed'].T if cfg.tie_embeddings else params['lm_head']
  return matmul(hidden, head.astype(hidden.dtype))


def decode_logits(params: Params, cfg: LMConfig, hidden: Array) -> Array:
  """`logits` of the few rows `[R, D]` that are decoded at a time, for a tied head; without a useful gradient.

  A CPU packs the embedding anew for `hidden @ embed.T`. As `embed @ hidden.T`, whose small result is then transposed,
  the product takes 10 ms instead of 17 (8 rows, width 576, 49,152 tokens, one core). The barriers keep the compiler
  from folding the transposes back.
  """
  if not cfg.tie_embeddings or hidden.shape[0] > FEW_ROWS or cfg.vocab_size < WIDE_HEAD:
    return logits(params, cfg, hidden)

  def from_the_head(hidden):
    hidden = hidden.astype(cfg.compute_dtype)
    columns = matmul(params['embed'].astype(hidden.dtype), hidden.T)  # [V, R]
    return jax.lax.optimization_barrier(jax.lax.optimization_barrier(columns).T)

  return jax.lax.platform_dependent(hidden, cpu=from_the_head, default=lambda h: logits(params, cfg, h))


def token_logprobs(params: Params, cfg: LMConfig, hidden: Array, targets: ArrayLike) -> tuple[Array, Array]:
  """Log-probability of each target and entropy of the distribution it was drawn from.

  Row chunks under a scan, each recomputed in the backward pass.

  Args:
    hidden: `[..., D]`, the states that predict `targets`.
    targets: `[...]` token ids.

  Returns:
    `(logp [...], entropy [...])`, float32, at temperature 1.
  """
  rows = targets.size
  chunk = min(rows, max(64, CHUNK_LOGITS // cfg.vocab_size))
  n = -(-rows // chunk)
  flat = jnp.pad(hidden.reshape(rows, -1), ((0, n * chunk - rows), (0, 0)))
  wanted = jnp.pad(targets.reshape(rows), (0, n * chunk - rows))

  @jax.checkpoint
  def score(h, target):
    x = logits(params, cfg, h)
    return log_prob_and_entropy(x, target)

  def step(_, xs):
    return None, score(*xs)

  _, (logp, entropy) = jax.lax.scan(step, None, (flat.reshape(n, chunk, -1), wanted.reshape(n, chunk)))
  return logp.reshape(-1)[:rows].reshape(targets.shape), entropy.reshape(-1)[:rows].reshape(targets.shape)


def log_prob_and_entropy(x: Array, target: Array) -> tuple[Array, Array]:
  """Of logits `x [R, V]`: log-softmax at `target [R]`, and entropy `[R]` in nats."""
  shifted = x - jax.lax.stop_gradient(x.max(-1, keepdims=True))
  weight = jnp.exp(shifted)
  total = weight.sum(-1)
  lse = jnp.log(total)
  # A select and a sum: their gradient is another select, where a gather's would be a scatter over V.
  picked = jnp.where(jnp.arange(x.shape[-1])[None] == target[:, None], shifted, 0).sum(-1)
  # A vocabulary masked to -inf has weight 0 there, and 0 * -inf must not be formed.
  expected = (weight * jnp.where(weight > 0, shifted, 0)).sum(-1) / total
  return picked - lse, lse - expected
