"""Samples G answers to each prompt; the prompt's keys are computed once for its group."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from eagrl_jax import rng
from eagrl_jax.lm import cache, forward, logprobs, model
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.draw import sample_from_logits
from eagrl_jax.types import Array, Params, PromptBatch, Rollout

__all__ = ['generate', 'sample_from_logits']

CHUNK = 128  # answer tokens after which a longer stretch of their keys is looked at


def generate(params: Params, cfg: LMConfig, prompt: PromptBatch, key: Array, *, group: int, max_new: int,
             temperature: float, stop_ids: tuple[int, ...], pad_id: int) -> Rollout:
  """Samples until every row has met a stop id or `max_new` tokens.

  A long answer is written in up to four chunks, each of which looks at no more slots than it can fill.

  The draw of token t of sample g is a function of (key, example id, g, t) alone, whatever else is in the batch.

  Args:
    prompt: left-padded `tokens`, `valid` `[B, S]` and `example [B]`; other fields are not read.
    key: typed PRNG key.
    group: answers a prompt, G.
    max_new: length T of the returned arrays.
    temperature: of the draw; 0 takes the most probable token.
    stop_ids: ids that end an answer; the stop token is part of it (`valid` is True there).
    pad_id: fills the columns after the end.

  Returns:
    A `Rollout` `[B, G, T]`; log-probabilities and entropies are those at temperature 1.
  """
  return _generate(params, prompt.tokens, prompt.valid, prompt.example, key, cfg=cfg, group=group, max_new=max_new,
                   temperature=temperature, stop_ids=tuple(stop_ids), pad_id=pad_id)


@functools.partial(jax.jit, static_argnames=('cfg', 'group', 'max_new', 'temperature', 'stop_ids', 'pad_id'))
def _generate(params, tokens, valid, example, key, *, cfg, group, max_new, temperature, stop_ids, pad_id):
  params = model.as_used(params, cfg)
  b = tokens.shape[0]
  shape = (b, group, max_new)
  start = valid.sum(-1, dtype=jnp.int32)[:, None, None]
  row_keys = jax.vmap(lambda k: rng.example_keys(k, jnp.arange(group)))(rng.example_keys(key, example)).reshape(-1)
  hidden, prompt_kv = forward.prefill(params, cfg, tokens, valid)
  params = params | {'layers': cache.by_layer(params['layers'], cfg)}
  shared = ((cache.by_layer(prompt_kv, cfg), valid),)

  def choose(hidden, out, done, t):
    """Draws token t `[B, G]` from `hidden [B, G, D]` and writes it into the rollout."""
    x = logprobs.decode_logits(params, cfg, hidden.reshape(b * group, -1))
    u = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, t)))(row_keys)
    token = sample_from_logits(x, u, temperature)
    logp, entropy = logprobs.log_prob_and_entropy(x, token)
    token, logp, entropy = (a.reshape(b, group) for a in (token, logp, entropy))
    token = jnp.where(done, pad_id, token)
    column = Rollout(token, ~done, jnp.where(done, 0, logp), jnp.where(done, 0, entropy))
    out = jax.tree.map(lambda a, c: jax.lax.dynamic_update_slice(a, c[..., None], (0, 0, t)), out, column)
    for stop in stop_ids:
      done = done | (token == stop)
    return token, out, done

  def step(end, state):
    t, token, out, done, own = state
    seen = (jnp.arange(end) < t)[None, None, None]
    hidden, own = forward.extend(params, cfg, token[..., None], start + t - 1 + jnp.zeros((1, group, 1), jnp.int32),
                                 shared, own, seen, t - 1)
    token, out, done = choose(hidden[:, :, 0], out, done, t)
    return t + 1, token, out, done, own

  out = Rollout(jnp.full(shape, pad_id, jnp.int32), jnp.zeros(shape, bool), jnp.zeros(shape), jnp.zeros(shape))
  first = jnp.broadcast_to(hidden[:, None], (b, group, hidden.shape[-1]))
  token, out, done = choose(first, out, jnp.zeros((b, group), bool), 0)
  state = (jnp.int32(1), token, out, done, cache.by_layer(cache.empty(cfg, b, group, max_new), cfg))
  for end in chunk_ends(max_new):
    go_on = lambda s, end=end: (s[0] < end) & ~s[3].all()
    state = jax.lax.while_loop(go_on, functools.partial(step, end), state)
  return state[2]


def chunk_ends(max_new: int) -> list[int]:
  """Where each chunk ends: at most four, each of a multiple of `CHUNK` tokens but the last."""
  size = CHUNK * max(1, -(-max_new // (4 * CHUNK)))
  return [*range(size, max_new, size), max_new]
