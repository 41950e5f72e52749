from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import lm_reference as ref
import numpy as np
import pytest
from jax import monitoring

from eagrl_jax.lm import cache, draw, forward, logprobs, model, sampler
from eagrl_jax.types import PromptBatch

STOP = (3, 7)
PARAMS = ref.params(embed=0.1)


def prompts(rows=slice(None)):
  tokens, valid, _, _ = ref.ragged(b=4)
  return PromptBatch(tokens[rows], valid[rows], np.zeros_like(tokens[rows]), np.array([11, 5, 8, 2])[rows])


def sample(prompt, group=3, temperature=1.0, max_new=9, stop=STOP):
  return sampler.generate(PARAMS, ref.CFG, prompt, jax.random.key(4), group=group, max_new=max_new,
                          temperature=temperature, stop_ids=stop, pad_id=0)


def test_a_rollout_does_not_depend_on_its_company():
  together = sample(prompts())
  alone = sample(prompts(slice(2, 3)), group=2)
  np.testing.assert_array_equal(alone.tokens[0], together.tokens[2, :2])
  np.testing.assert_allclose(alone.logprobs[0], together.logprobs[2, :2], atol=1e-5)
  assert len({tuple(row) for row in np.asarray(together.tokens).reshape(-1, 9).tolist()}) == 12


def test_greedy_equals_the_argmax_of_the_plain_decoder():
  prompt = prompts()
  out = sample(prompt, group=1, temperature=0.0, stop=())
  for b in range(4):
    tokens = np.concatenate([prompt.tokens[b][prompt.valid[b]], out.tokens[b, 0]])
    states, _ = ref.forward(PARAMS, ref.CFG, tokens)
    np.testing.assert_array_equal(jnp.argmax(states[-10:-1] @ PARAMS['embed'].T, -1), out.tokens[b, 0])


def test_valid_ends_with_the_stop_token_and_the_rest_is_padding():
  out = sample(prompts(), max_new=40)
  ends = 0
  for row, valid, logp, entropy in zip(*(np.asarray(a).reshape(-1, 40) for a in jax.tree.leaves(out))):
    stops = np.flatnonzero(np.isin(row, STOP) & valid)
    n = valid.sum()
    assert valid[:n].all()
    assert list(stops) == [n - 1] or (n == 40 and not len(stops))
    assert not row[n:].any() and not logp[n:].any() and not entropy[n:].any()
    ends += n < 40
  assert ends > 3


def test_logprobs_and_entropy_are_those_of_the_trainer():
  prompt = prompts()
  out = sample(prompt, temperature=0.7)
  hidden = forward.forward_shared(PARAMS, ref.CFG, prompt.tokens, prompt.valid, out.tokens, out.valid).hidden
  logp, entropy = logprobs.token_logprobs(PARAMS, ref.CFG, hidden, out.tokens)
  np.testing.assert_allclose(out.logprobs, np.where(out.valid, logp, 0), atol=1e-5)
  np.testing.assert_allclose(out.entropy, np.where(out.valid, entropy, 0), atol=1e-5)


def test_it_stops_when_every_row_has_stopped(monkeypatch):
  steps = []
  extend = forward.extend

  def counted(*args):
    jax.debug.callback(lambda: steps.append(1))
    return extend(*args)

  monkeypatch.setattr(forward, 'extend', counted)
  everything = tuple(range(ref.CFG.vocab_size))
  out = sample(prompts(), max_new=6, stop=everything)
  jax.block_until_ready(out)
  jax.effects_barrier()
  assert not steps and np.asarray(out.valid).sum(-1).max() == 1
  jax.block_until_ready(sample(prompts(), max_new=6, stop=(ref.CFG.vocab_size + 1,)))
  jax.effects_barrier()
  assert len(steps) == 5


def test_a_second_batch_of_the_same_shape_compiles_nothing():
  sample(prompts())
  compiled = []

  def listen(name, *_, **__):
    compiled.append(name) if 'backend_compile' in name else None

  monitoring.register_event_duration_secs_listener(listen)
  other = prompts()
  jax.block_until_ready(sample(other.replace(tokens=(other.tokens + 1) % 50, example=other.example + 9)))
  assert not compiled
  jax.block_until_ready(sample(prompts(), max_new=8))
  assert compiled  # the listener does hear a compile


@functools.cache
def drawn(top_p):
  r = np.random.default_rng(0)
  x = (r.normal(size=600) * 1.5).astype(np.float32)
  x[[5, 300, 599]] = -np.inf
  u = r.random(40_000).astype(np.float32)
  pick = jax.jit(lambda u: draw.sample_from_logits(jnp.broadcast_to(x, (len(u), 600)), u, 0.8, top_p))
  tokens = np.concatenate([np.asarray(pick(part)) for part in np.split(u, 10)])
  weight = np.exp((x.astype(np.float64) - x.max()) / 0.8)
  return np.bincount(tokens, minlength=600), weight / weight.sum()


def test_frequencies_follow_the_softmax():
  counts, p = drawn(1.0)
  assert not counts[p == 0].any()
  large = p * 40_000 >= 5
  observed = np.append(counts[large], counts[~large].sum())
  expected = np.append(p[large], p[~large].sum()) * 40_000
  chi2 = ((observed - expected) ** 2 / expected).sum()
  freedom = large.sum()
  assert abs(chi2 - freedom) < 4 * np.sqrt(2 * freedom)


def test_no_token_lies_outside_the_vocabulary():
  x = jax.random.normal(jax.random.key(0), (4, 700))
  u = jnp.array([0.0, 0.3, 0.6, 0.999])
  for cold in (jnp.zeros(4), 1e-45):
    np.testing.assert_array_equal(draw.sample_from_logits(x, u, cold), jnp.argmax(x, 1))
  assert draw.sample_from_logits(x.at[1, 3].set(jnp.nan), u, 1.0).max() < 700


def test_top_p_keeps_the_smallest_set_and_renormalises():
  counts, p = drawn(0.3)
  order = np.argsort(-p)
  keep = order[:np.searchsorted(np.cumsum(p[order]), 0.3) + 1]
  assert set(np.flatnonzero(counts)) == set(keep) and len(keep) > 5
  expected = p[keep] / p[keep].sum() * 40_000
  chi2 = ((counts[keep] - expected) ** 2 / expected).sum()
  assert abs(chi2 - (len(keep) - 1)) < 4 * np.sqrt(2 * len(keep))


@pytest.mark.parametrize('size', [3, 256, 700])
@pytest.mark.parametrize('top_p', [1.0, 0.9])
def test_the_ends_of_the_unit_interval_give_allowed_tokens(size, top_p):
  x = np.full((4, size), -np.inf, np.float32)
  x[:, [1, size - 2]] = 0.0, -1.0
  u = np.array([0.0, np.nextafter(np.float32(1), np.float32(0)), 1e-30, 0.5], np.float32)
  tokens = np.asarray(draw.sample_from_logits(x, u, 1.0, top_p))
  assert list(tokens) == [1, size - 2, 1, 1]


def test_inverse_cdf_equals_a_cumulative_sum_in_float64():
  r = np.random.default_rng(3)
  x = (r.normal(size=(500, 1000)) * 2).astype(np.float32)
  u = r.random(500).astype(np.float32)
  p = np.exp(x.astype(np.float64))
  edges = np.cumsum(p, -1) / p.sum(-1, keepdims=True)
  want = (edges <= u[:, None]).sum(-1)
  near = np.abs(edges - u[:, None]).min(-1) < 1e-6
  assert near.sum() < 10
  np.testing.assert_array_equal(np.asarray(draw.sample_from_logits(x, u))[~near], want[~near])


def test_candidates_from_blocks_are_the_largest():
  r = np.random.default_rng(5)
  weight = r.random((7, 64 * 300 - 11)).astype(np.float32)
  weight[0, :100] = 2.0  # more equal ones than candidates, all in the first blocks
  weight[1, 7::301] = 3.0  # one a block
  got, want = draw._top(jnp.asarray(weight), 64), jax.lax.top_k(weight, 64)
  np.testing.assert_array_equal(got[0], want[0])
  np.testing.assert_array_equal(got[1], want[1])


def test_temperature_may_differ_by_row_and_zero_is_greedy():
  x = np.tile(np.array([[0.0, 2.0, 1.0]], np.float32), (2, 1))
  u = np.full(2, 0.01, np.float32)
  assert list(draw.sample_from_logits(x, u, jnp.array([0.1, 5.0]))) == [1, 0]
  assert list(draw.sample_from_logits(x, u, 0.0)) == [1, 1]


@pytest.mark.parametrize(('module', 'name', 'value'), [
    (sampler, 'CHUNK', 2), (cache, 'unrolled', lambda cfg: False)])
def test_chunks_and_a_scan_over_layers_change_nothing(module, name, value, monkeypatch):
  """Long answers are written in chunks; large decoders scan over their layers, shallow ones do not."""
  plain = sample(prompts(), max_new=11)
  monkeypatch.setattr(module, name, value)
  sampler._generate.clear_cache()
  other = sample(prompts(), max_new=11)
  sampler._generate.clear_cache()
  np.testing.assert_array_equal(other.tokens, plain.tokens)
  np.testing.assert_allclose(other.logprobs, plain.logprobs, atol=1e-5)


def test_no_more_than_four_chunks():
  assert sampler.chunk_ends(80) == [80] and sampler.chunk_ends(300) == [128, 256, 300]
  assert sampler.chunk_ends(2048) == [512, 1024, 1536, 2048] and sampler.chunk_ends(513) == [256, 512, 513]


def test_weights_are_rounded_once_for_the_whole_loop():
  """Handing over weights that are rounded already gives the same answers, bit for bit."""
  cfg = dataclasses.replace(ref.CFG, compute_dtype='bfloat16')
  write = lambda p: sampler.generate(p, cfg, prompts(), jax.random.key(4), group=3, max_new=9, temperature=1.0,
                                     stop_ids=STOP, pad_id=0)
  used = model.as_used(PARAMS, cfg)
  assert used['layers']['wq'].dtype == jnp.bfloat16 and used['layers']['attn_norm'].dtype == jnp.float32
  one, two = write(PARAMS), write(used)
  jax.tree.map(np.testing.assert_array_equal, one, two)
  assert one.logprobs.dtype == one.entropy.dtype == jnp.float32
