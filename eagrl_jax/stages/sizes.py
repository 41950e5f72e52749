"""What a dry run says about sizes: parameters, tokens and bytes a device, computed from shapes alone."""

from __future__ import annotations

import math

import jax
from ml_collections import ConfigDict

from eagrl_jax.lm import gguf_io, hf_io, model
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.mesh import make_mesh
from eagrl_jax.stages import settings

FEATURES = {'synthetic': 20, 'tjh': 73, 'physionet2012': 39, 'csv': 50}  # csv: a guess, its file is not read
FLOAT = 4


def policy_shape(c: ConfigDict) -> LMConfig | None:
  """The policy's shape; None for a hub name, which a dry run does not download."""
  if c.lm.checkpoint == 'tiny':
    return settings.tiny(c)
  if c.lm.checkpoint.endswith('.gguf'):
    shape = gguf_io.read_config(c.lm.checkpoint)
  elif (found := hf_io.inspect(c.lm.checkpoint)) is not None:
    shape = found
  else:
    return None
  return settings.shaped(shape, c)


def prompt_tokens(c: ConfigDict) -> int:
  """Upper estimate of a prompt's length, in tokens, rounded up to the bucket."""
  visits = min(c.prompt.max_values, c.data.max_visits)
  features = FEATURES[c.data.source]
  estimate = 30 + features * (2 + 4 * visits) if c.prompt.style == 'compact' else 220 + features * (24 + 4 * visits)
  if c.prompt.max_characters:
    estimate = min(estimate, 220 + c.prompt.max_characters // 2)
  return math.ceil(estimate / c.prompt.bucket) * c.prompt.bucket


def table(c: ConfigDict) -> str:
  """Lines for the terminal."""
  lm = policy_shape(c)
  if lm is None:
    return f'lm.checkpoint={c.lm.checkpoint!r} is a hub name: its sizes are known after the first download'
  mesh = make_mesh(**c.mesh.to_dict())
  shapes = model.abstract(lm)
  shardings = model.param_shardings(lm, mesh)
  shard = [math.prod(s.shard_shape(x.shape)) for x, s in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings))]
  total, local = sum(x.size for x in jax.tree.leaves(shapes)), sum(shard)
  data = mesh.shape['data'] * mesh.shape['fsdp']
  s, t, g = prompt_tokens(c), c.rl.max_new, c.rl.group
  kv = 2 * lm.n_layers * lm.n_kv_heads * lm.head_dim * FLOAT  # bytes a cached token
  rows, judged = math.ceil(c.rl.prompts / data), math.ceil(c.evaluate.batch / data)
  micro = math.ceil(c.rl.micro_batch / data)
  tree = settings.search(c).n_nodes
  step = c.search.question_tokens + c.search.answer_tokens + 32
  # Saved for the backward pass, a token and layer: residuals, normed inputs, projections, gate, up, product.
  saved = (2 * lm.d_model if lm.remat else 8 * lm.d_model + 2 * lm.head_dim * (lm.n_heads + lm.n_kv_heads)
           + 4 * lm.d_ff) * FLOAT
  activations = micro * (s + g * t) * (saved * lm.n_layers + 2 * lm.d_model * FLOAT)
  parts = {
      'parameters': local * FLOAT,
      'gradients': local * FLOAT,
      'optimiser moments': 2 * local * FLOAT,
      'reference policy (rl.kl)': local * FLOAT if c.rl.kl else 0,
      'sampler KV (rl)': rows * (s + g * t) * kv,
      'sampler KV (evaluate)': judged * (s + c.evaluate.samples * c.evaluate.max_new) * kv,
      'search KV': math.ceil(c.search.trees / data) * (s + tree * step) * kv,
      'activations of a micro-batch (rl)': activations,
  }
  lines = [f'policy: {total / 1e6:.1f} M parameters, {mesh.size} device(s)',
           f'tokens (estimates): prompt {s}, answer up to {t}; one rl step holds {c.rl.prompts * (s + g * t)} tokens',
           f'search: {c.search.patients} patients in batches of {c.search.trees} trees of up to {tree} nodes',
           'memory a device (predicted):']
  lines += [f'  {name:34s} {size / 2**20:10.1f} MiB' for name, size in parts.items()]
  return '\n'.join([*lines, f'  {"sum":34s} {sum(parts.values()) / 2**20:10.1f} MiB'])
