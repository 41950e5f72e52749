"""Next-token log-probabilities and entropies without ever holding `[rows, V]`.

On several devices the vocabulary is cut over tensor x fsdp, and rows go to it. Of r rows of a `data` group a device
receives the states, receives them again to recompute the logits, and scatters the states' gradient: 3 r D numbers. The
head gathered over fsdp would cost 3 V D / tensor, once for each pass and once for its gradient: less only from
r = V / tensor rows of a micro-batch on, and a whole head in the memory of every tensor group. So that is left to a
vocabulary that fsdp does not divide (`mesh.fitting`); with data alone the head is whole, and neither is sent.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from eagrl_jax.lm import layers
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.matmul import matmul
from eagrl_jax.mesh import constrain, shards
from eagrl_jax.types import Array, ArrayLike, Params

CHUNK_LOGITS = 2**23  # logits of a chunk of rows on a device, 32 MiB, where that is more than the rows below
CPU_ROWS = 64  # of a chunk at least, for each device
ACCELERATOR_ROWS = 2048  # of a chunk at least, for each copy of the head
FEW_ROWS = 64  # up to which a CPU multiplies a wide head faster from its own side
WIDE_HEAD = 2**13


def logits(params: Params, cfg: LMConfig, hidden: Array) -> Array:
  """Unnormalised log-probabilities `[..., V]`, float32 at least, of normed states `hidden [..., D]`."""
  axes = ('batch',) + (None,) * (hidden.ndim - 2)
  hidden = constrain(hidden.astype(cfg.compute_dtype), (*axes, None), ('vocab', cfg.vocab_size))
  head = params['embed'].swapaxes(-1, -2) if cfg.tie_embeddings else params['lm_head']
  head = constrain(head.astype(hidden.dtype), ('batch',) * (head.ndim - 2) + ('embed', 'vocab'))
  return constrain(matmul(hidden, head, exact=True), (*axes, 'vocab'))


def decode_logits(params: Params, cfg: LMConfig, hidden: Array) -> Array:
  """`logits` of the few rows `[R, D]` that are decoded at a time, for a tied head; without a useful gradient.

  A CPU packs the embedding anew for `hidden @ embed.T`. As `embed @ hidden.T`, whose small result is then transposed,
  the product takes 10 ms instead of 17 (8 rows, width 576, 49,152 tokens, one core). The barriers keep the compiler
  from folding the transposes back.
  """
  drawn = ('batch', 'drawn')  # several devices exchange their slices for rows, so that fewer share the draw of a token
  if not cfg.tie_embeddings or hidden.shape[0] > FEW_ROWS or cfg.vocab_size < WIDE_HEAD:
    return constrain(logits(params, cfg, hidden), drawn)

  def from_the_head(hidden):
    hidden = constrain(hidden.astype(cfg.compute_dtype), ('batch', None), ('vocab', cfg.vocab_size))
    columns = matmul(params['embed'].astype(hidden.dtype), hidden.T, exact=True)  # [V, R]
    columns = constrain(columns, ('vocab', 'batch'))
    return jax.lax.optimization_barrier(jax.lax.optimization_barrier(columns).T)

  x = jax.lax.platform_dependent(hidden, cpu=from_the_head, default=lambda h: logits(params, cfg, h))
  return constrain(x, drawn)


def word_logits(params: Params, cfg: LMConfig, hidden: Array, words: Array) -> Array:
  """`logits` of a few words alone, `[..., W]`: the rest of the head is not read.

  Args:
    hidden: normed states `[..., D]`.
    words: `[W]` token ids.
  """
  if cfg.tie_embeddings:
    head = layers.embed(params, cfg, words).T
  else:
    head = constrain(params['lm_head'], ('embed', 'vocab'))[:, words].astype(cfg.compute_dtype)
  return matmul(hidden.astype(cfg.compute_dtype), constrain(head, (None, None)), exact=True)


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
  ways = shards(('batch', 'vocab'), (rows, cfg.vocab_size))
  groups = ways // shards(('vocab',), (cfg.vocab_size,))
  chunk = chunk_rows(rows, cfg.vocab_size, ways, groups)
  n = -(-rows // chunk)
  flat = jnp.pad(hidden.reshape(rows, -1), ((0, n * chunk - rows), (0, 0)))
  wanted = jnp.pad(jnp.asarray(targets).reshape(rows), (0, n * chunk - rows))

  own = params if groups == 1 else _a_head_each(params, cfg, groups)

  @jax.checkpoint
  def score(h, target):
    if groups == 1:
      x = logits(params, cfg, h)
    else:
      x = logits(own, cfg, h.reshape(groups, chunk // groups, -1)).reshape(chunk, -1)
    logp, entropy = log_prob_and_entropy(x, target)
    return constrain(logp, ('batch',)), constrain(entropy, ('batch',))

  def step(_, xs):
    return None, score(*xs)

  def split(x):
    """`[n, chunk, ...]`; with several devices a chunk takes every n-th row: so each device has its share of all."""
    if ways == 1:
      return x.reshape(n, chunk, *x.shape[1:])
    return constrain(x.reshape(chunk, n, *x.shape[1:]).swapaxes(0, 1), (None, 'batch') + (None,) * (x.ndim - 1))

  def join(x):
    x = x if ways == 1 else x.swapaxes(0, 1)
    return x.reshape(-1)[:rows].reshape(targets.shape)

  _, (logp, entropy) = jax.lax.scan(step, None, (split(flat), split(wanted)))
  return join(logp), join(entropy)


def chunk_rows(rows: int, vocab_size: int, ways: int, groups: int, backend: str | None = None) -> int:
  """Rows at a time, a multiple of `ways`, unless there are fewer.

  A pass reads and writes each copy of the head's float32 gradient at every chunk: 8 V D bytes beside 6 V D FLOPs a row.
  With 64 rows that takes memory four to five times as long as arithmetic, by the data sheets of an H200 and a TPU v5e;
  with 2,048, a seventh of it.

  Args:
    ways: devices that rows and vocabulary are cut over. groups: copies of the head among them.
  """
  least = CPU_ROWS if (backend or jax.default_backend()) == 'cpu' else -(-ACCELERATOR_ROWS * groups // ways)
  return min(rows, ways * max(least, CHUNK_LOGITS // vocab_size))


def _a_head_each(params: Params, cfg: LMConfig, groups: int) -> Params:
  """The head, once for each group of devices that has rows of its own: `[groups, V, D]`, or `[groups, D, V]` untied.

  It takes no more memory, but its gradient is then added up over the groups once, where the gradient of one head
  would be at every chunk of rows.
  """
  name, axes = ('embed', ('vocab', 'embed')) if cfg.tie_embeddings else ('lm_head', ('embed', 'vocab'))
  head = constrain(params[name], axes)
  return {name: constrain(jnp.broadcast_to(head, (groups, *head.shape)), ('batch', *axes))}


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
