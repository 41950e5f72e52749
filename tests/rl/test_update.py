"""The policy update against a numpy loop, and the invariances that it promises."""

from __future__ import annotations

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eagrl_jax import mesh as mesh_lib
from eagrl_jax.lm import model
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.forward import AttentionTap, forward_shared
from eagrl_jax.lm.logprobs import token_logprobs
from eagrl_jax.lm.sampler import generate
from eagrl_jax.rl import update as update_lib
from eagrl_jax.rl.update import RLBatch, UpdateConfig, make_update, over_updates, policy_loss, policy_steps, weigh
from eagrl_jax.train import state as state_lib
from eagrl_jax.types import EagrlError, PromptBatch, Rollout

LM = LMConfig(vocab_size=23, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=24)
B, G, S, T, F = 4, 3, 10, 6, 5
FULL = UpdateConfig(micro_batch=B, kl_coef=0.1, c_align=0.5, dual_clip=3.0, align_top_k=2)
MESH = mesh_lib.make_mesh()


def make_batch(seed: int = 0) -> RLBatch:
  rng = np.random.default_rng(seed)
  lengths, answers = rng.integers(6, S + 1, B), rng.integers(2, T + 1, (B, G))
  valid = np.arange(S)[None, :] >= S - lengths[:, None]
  answer_valid = np.arange(T)[None, None, :] < answers[..., None]
  real = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return jax.tree.map(jnp.asarray, RLBatch(
      prompt=PromptBatch(
          tokens=rng.integers(0, LM.vocab_size, (B, S)), valid=valid,
          feature=np.where(valid, rng.integers(-1, F - 1, (B, S)), -1), example=np.arange(B)),
      rollout=Rollout(
          tokens=rng.integers(0, LM.vocab_size, (B, G, T)), valid=answer_valid,
          logprobs=(-3.1 + 0.3 * real(B, G, T)).astype(np.float32), entropy=np.ones((B, G, T), np.float32)),
      advantage=real(B, G), eps_high=rng.uniform(0.2, 0.4, (B, G)).astype(np.float32),
      weight=np.array([1, 1, 0, 1], np.float32), salience=rng.dirichlet(np.ones(F), B).astype(np.float32),
      align_mask=answer_valid & (np.arange(T) >= 2)[None, None, :],
      ref_logprobs=(-3.1 + 0.2 * real(B, G, T)).astype(np.float32)))


@pytest.fixture(scope='module')
def params():
  return jax.tree.map(lambda x: 3 * x if x.ndim > 2 else x, model.init(LM, jax.random.key(0)))


OPTIMIZER = optax.sgd(0.1, momentum=0.9)


@functools.cache
def compiled(cfg, optimizer=OPTIMIZER, lm_cfg=LM):
  return make_update(lm_cfg, optimizer, cfg, state_lib.state_shardings(lm_cfg, optimizer, MESH))


def new_state(params, optimizer=OPTIMIZER):
  return state_lib.from_params(params, LM, optimizer, MESH)


def batch_loss(params, batch, cfg):
  return policy_loss(params, weigh(batch, cfg), LM, cfg)


part_gradient = jax.jit(lambda params, part: jax.grad(policy_loss, has_aux=True)(params, part, LM, FULL))


def gradient(params, batch):
  return part_gradient(params, weigh(batch, FULL))


@jax.jit
def forward(params, batch, tap):
  out = forward_shared(
      params, LM, batch.prompt.tokens, batch.prompt.valid, batch.rollout.tokens, batch.rollout.valid, tap)
  return token_logprobs(params, LM, out.hidden, batch.rollout.tokens), out.attention


def close(a, b, rtol=2e-4, atol=2e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize('reduction', ['token_mean', 'sequence_mean'])
def test_loss_against_a_numpy_loop(params, reduction):
  cfg = dataclasses.replace(FULL, reduction=reduction)
  batch = make_batch()
  rows = np.asarray(batch.align_mask, np.float32)
  rows = rows / np.maximum(rows.sum(-1, keepdims=True), 1)
  feature, shown = np.asarray(batch.prompt.feature), np.asarray(batch.prompt.valid)
  indicator = (feature[..., None] == np.arange(F)) & shown[..., None]
  tap = AttentionTap(jnp.asarray(indicator, jnp.float32), jnp.asarray(rows), jnp.full(2, 0.5))
  (logp, _), attention = jax.tree.map(lambda x: np.asarray(x, np.float64), forward(params, batch, tap))

  answers, kls, clipped_high, aligned = [], [], [], []
  for b in range(B):
    if not batch.weight[b]:
      continue
    span = indicator[b].sum(0)
    expert = np.where(span > 0, batch.salience[b], 0)
    expert = expert / expert.sum()
    for g in range(G):
      tokens, penalties, highs = [], [], []
      for t in np.flatnonzero(batch.rollout.valid[b, g]):
        r = np.exp(logp[b, g, t] - float(batch.rollout.logprobs[b, g, t]))
        a, high = float(batch.advantage[b, g]), 1 + float(batch.eps_high[b, g])
        value = min(r * a, np.clip(r, 0.8, high) * a)
        tokens.append(max(value, 3 * a) if a < 0 else value)
        highs.append(a > 0 and r > high)
        d = float(batch.ref_logprobs[b, g, t]) - logp[b, g, t]
        penalties.append(np.exp(d) - d - 1)
      answers.append(tokens), kls.append(penalties), clipped_high.append(highs)
      if rows[b, g].any():
        mass = np.where(span > 0, attention[:, b, g].mean(0), 0)
        policy = mass / mass.sum()
        aligned.append(sum(e * np.log(e / p) for e, p in zip(expert, policy) if e > 0))
  if reduction == 'token_mean':
    mean = lambda lists: np.mean(np.concatenate(lists))
  else:
    mean = lambda lists: np.mean([np.mean(x) for x in lists])

  loss, stats = batch_loss(params, batch, cfg)
  assert 0 < mean(clipped_high) < 1 and 0 < len(aligned) < 9
  np.testing.assert_allclose(stats.sums['objective'], mean(answers), rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(stats.sums['ref_kl'], mean(kls), rtol=1e-4)
  np.testing.assert_allclose(stats.sums['clip_high'], mean(clipped_high), rtol=1e-5)
  np.testing.assert_allclose(stats.sums['align_loss'], np.mean(aligned), rtol=1e-4)
  np.testing.assert_allclose(loss, -mean(answers) + 0.1 * mean(kls) + 0.5 * np.mean(aligned), rtol=1e-4)


def test_gradient_against_finite_differences(params):
  batch = make_batch()
  grads, _ = gradient(params, batch)
  loss = lambda r: gradient(jax.tree.map(lambda p, g: p + r * g, params, grads), batch)[1].sums['loss']
  slope = (loss(2e-5) - loss(-2e-5)) / 4e-5
  np.testing.assert_allclose(slope, optax.tree.norm(grads) ** 2, rtol=0.02)


def unpack(weighted):
  """One answer a row: each brings its own copy of the prompt."""
  alone = lambda x: x.reshape(B * G, 1, *x.shape[2:])
  repeat = lambda x: jnp.repeat(x, G, axis=0)
  batch = weighted.batch
  batch = batch.replace(
      prompt=jax.tree.map(repeat, batch.prompt), weight=repeat(batch.weight), salience=repeat(batch.salience),
      rollout=jax.tree.map(alone, batch.rollout), advantage=alone(batch.advantage), eps_high=alone(batch.eps_high),
      align_mask=alone(batch.align_mask), ref_logprobs=alone(batch.ref_logprobs))
  return weighted.replace(
      batch=batch, token_weight=alone(weighted.token_weight), rows=alone(weighted.rows),
      align_weight=alone(weighted.align_weight))


def test_packed_equals_unpacked(params):
  """The two are one sum in two orders: equal in double precision, and the packed one in float32 near that sum."""
  weighted = weigh(make_batch(), FULL)
  double = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree)
  wide_lm = dataclasses.replace(LM, compute_dtype='float64')
  with jax.enable_x64(True):
    gradient_of = jax.jit(lambda p, part: jax.grad(policy_loss, has_aux=True)(p, part, wide_lm, FULL))
    packed = gradient_of(double(params), double(weighted))
    close(packed, gradient_of(double(params), double(unpack(weighted))), rtol=1e-9, atol=1e-12)
    exact = jax.device_get(packed)
  grads, stats = jax.device_get(part_gradient(params, weighted))
  close(stats, exact[1])
  for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(exact[0]), strict=True):
    assert np.linalg.norm(got - want) < 1e-5 * np.linalg.norm(want)  # some eighty roundings of 1.2e-7


def test_jit_equals_no_jit(params):
  batch = make_batch()
  close(gradient(params, batch)[1], batch_loss(params, batch, FULL)[1], rtol=1e-5)


def test_micro_batches_and_remat_equal_the_full_batch(params):
  state, want = compiled(FULL)(new_state(params), make_batch())
  by_one = compiled(dataclasses.replace(FULL, micro_batch=1), lm_cfg=dataclasses.replace(LM, remat='full'))
  other, got = by_one(new_state(params), make_batch())
  close((other.params, got), (state.params, want))


def test_bfloat16_has_float32_master_weights_and_figures():
  params = model.init(LM, jax.random.key(0))  # the steep ones of the other tests magnify a rounding tenfold
  lm_cfg = dataclasses.replace(LM, compute_dtype='bfloat16')
  cfg = UpdateConfig(micro_batch=B, c_align=0.5, eps_low=0.99)
  batch = make_batch().replace(eps_high=jnp.full((B, G), 50.0))  # a clip jumps where a rounding may not
  optimizer = optax.adam(1e-5)  # a step far below the spacing of bfloat16 numbers around a weight
  state, metrics = compiled(cfg, optimizer, lm_cfg)(new_state(params, optimizer), batch)
  assert {x.dtype.name for x in jax.tree.leaves((state.params, state.opt_state)) if x.ndim} == {'float32'}
  moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, params)
  assert all(0 < m < 2e-5 for m in jax.tree.leaves(moved))
  gradient_in = lambda lm: jax.jit(jax.grad(lambda p, part: policy_loss(p, part, lm, cfg), has_aux=True))(
      params, weigh(batch, cfg))
  (got, figures), (want, exact) = gradient_in(lm_cfg), gradient_in(LM)
  for name in ('loss', 'entropy', 'align_loss'):
    assert metrics[name].dtype == figures.sums[name].dtype == jnp.float32
    np.testing.assert_allclose(figures.sums[name], exact.sums[name], rtol=0.01, err_msg=name)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert a.dtype == jnp.float32 and np.linalg.norm(a - b) < 0.03 * np.linalg.norm(b)


def test_a_dropped_group_leaves_no_trace(params):
  batch = make_batch()
  spoiled = batch.replace(
      advantage=batch.advantage.at[2].set(99.0), rollout=batch.rollout.replace(
          tokens=batch.rollout.tokens.at[2].set(0)))
  close(gradient(params, batch), gradient(params, spoiled))


def test_padding_changes_nothing(params):
  batch = make_batch()
  left = lambda x, fill: jnp.pad(x, ((0, 0), (3, 0)), constant_values=fill)
  right = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 2)))
  prompt = batch.prompt.replace(
      tokens=left(batch.prompt.tokens, 1), valid=left(batch.prompt.valid, False),
      feature=left(batch.prompt.feature, -1))
  padded = batch.replace(
      prompt=prompt, rollout=jax.tree.map(right, batch.rollout), align_mask=right(batch.align_mask),
      ref_logprobs=right(batch.ref_logprobs))
  close(gradient(params, padded), gradient(params, batch))


def on_policy(params, batch):
  """The batch with the log-probabilities that `params` give its answers."""
  (logp, entropy), _ = forward(params, batch, None)
  return batch.replace(rollout=batch.rollout.replace(logprobs=logp, entropy=entropy))


def test_ratios_move_from_the_second_update_on(params):
  optimizer = optax.sgd(0.004)
  update = compiled(UpdateConfig(micro_batch=B), optimizer)
  state, history = policy_steps(update, new_state(params, optimizer), on_policy(params, make_batch()), 11, 1)
  first, second, last = history[0], history[1], history[-1]
  np.testing.assert_allclose(first['ratio_max'], 1, atol=1e-5)
  assert first['sampler_gap_max'] < 1e-5 and first['sampler_gap_mean'] <= first['sampler_gap_max']
  assert first['clip_low'] == first['clip_high'] == 0
  assert second['ratio_max'] > 1.1 and second['approx_kl'] > 1e-4 and second['objective'] > first['objective']
  assert last['clip_low'] > 0 and last['clip_high'] > 0 and last['objective'] > second['objective']
  assert state.step == 11 and 'sampler_gap_max' not in second


def test_minibatches_share_the_prompts_out():
  batch, seen = make_batch(), []

  def update(state, part):
    seen.append(part)
    return state + 1, {'logp_gap_mean': 0.0, 'logp_gap_max': 0.0}

  state, history = policy_steps(update, 0, batch, 2, 2)
  assert state == len(history) == 4
  for part, rows in zip(seen, ([0, 2], [1, 3]) * 2):
    chex.assert_trees_all_equal(part, jax.tree.map(lambda x: x[np.array(rows)], batch))


def test_sampler_and_trainer_agree(params):
  batch = make_batch()
  rollout = generate(
      params, LM, batch.prompt, jax.random.key(1), group=G, max_new=T, temperature=1.0, stop_ids=(0,), pad_id=0)
  _, stats = batch_loss(params, batch.replace(rollout=rollout, align_mask=rollout.valid), UpdateConfig(micro_batch=B))
  assert stats.peaks['logp_gap_max'] < 2e-5


def test_alignment_alone_moves_the_attention(params):
  cfg = UpdateConfig(micro_batch=B, c_align=1.0, align_rows='all', align_layers=(-1,))
  batch = on_policy(params, make_batch())
  batch = batch.replace(advantage=jnp.zeros((B, G)))
  optimizer = optax.adam(3e-2)
  _, history = policy_steps(compiled(cfg, optimizer), new_state(params, optimizer), batch, 12, 1)
  assert history[-1]['align_loss'] < 0.5 * history[0]['align_loss']


def test_no_alignment_builds_no_tap(params, monkeypatch):
  def refuse(*_):
    raise AssertionError('tap')

  monkeypatch.setattr(update_lib, 'AttentionTap', refuse)
  _, stats = batch_loss(params, make_batch(), UpdateConfig(micro_batch=B))
  assert not any('align' in name for name in stats.sums)
  with pytest.raises(AssertionError, match='tap'):
    batch_loss(params, make_batch(), UpdateConfig(micro_batch=B, c_align=1.0))


def test_a_non_finite_gradient_changes_nothing(params):
  update, batch = compiled(FULL), make_batch()
  state, _ = update(new_state(params), batch)
  before = jax.tree.map(np.array, state)
  after, metrics = update(state, batch.replace(advantage=batch.advantage.at[0, 0].set(jnp.inf)))
  assert metrics['finite'] == 0 and after.step == before.step + 1
  jax.tree.map(np.testing.assert_array_equal, (after.params, after.opt_state), (before.params, before.opt_state))


def test_an_update_of_nothing_moves_nothing(params):
  """Momentum would go on moving the weights, and figures of no answer are unknown, not 0."""
  update, batch = compiled(FULL), make_batch()
  state, _ = update(new_state(params), batch)
  before = jax.tree.map(np.array, state)
  after, metrics = update(state, batch.replace(weight=jnp.zeros(B)))
  assert metrics['finite'] == 1 and metrics['loss'] == metrics['grad_norm'] == 0 and after.step == before.step + 1
  jax.tree.map(np.testing.assert_array_equal, (after.params, after.opt_state), (before.params, before.opt_state))
  assert all(np.isnan(metrics[k]) for k in ('entropy', 'ref_kl', 'ratio_max', 'logp_gap_mean', 'align_loss'))


def test_an_update_without_aligned_answers_says_no_alignment(params):
  batch = make_batch()
  _, metrics = compiled(FULL)(new_state(params), batch.replace(align_mask=jnp.zeros((B, G, T), bool)))
  assert np.isnan(metrics['align_loss']) and np.isnan(metrics['align_jaccard']) and np.isfinite(metrics['entropy'])


def test_figures_of_a_step_are_of_all_its_updates():
  history = [{'entropy': 2.0, 'ratio_max': 1.0, 'loss': 1.0, 'finite': 1.0, 'sampler_gap_max': 0.5},
             {'entropy': np.nan, 'ratio_max': np.nan, 'loss': 0.0, 'finite': 1.0},
             {'entropy': 1.0, 'ratio_max': 3.0, 'loss': 2.0, 'finite': 0.0}]
  assert over_updates(history) == {'entropy': 1.5, 'ratio_max': 3, 'loss': 1, 'finite': 0, 'sampler_gap_max': 0.5}
  assert np.isnan(over_updates(history[1:2])['entropy'])
  assert np.isnan(over_updates([*history, {'loss': np.nan}])['loss'])  # a loss is never unknown: it must be seen


def test_an_absurd_ratio_stays_finite(params):
  batch = make_batch()
  batch = batch.replace(rollout=batch.rollout.replace(logprobs=jnp.full((B, G, T), -500.0)))
  grads, _ = gradient(params, batch)
  assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_a_second_batch_compiles_nothing(params):
  update, state = compiled(FULL), new_state(params)
  update.clear_cache()
  for seed in range(3):
    state, _ = update(state, mesh_lib.shard_batch(MESH, make_batch(seed)))
  assert update._cache_size() == 1


@pytest.mark.parametrize(('bad', 'field'), [
    ({'reduction': 'x'}, 'rl.loss'), ({'align': 'x'}, 'rl.align'), ({'align_rows': 'x'}, 'rl.align_rows'),
    ({'micro_batch': 0}, 'rl.micro_batch'), ({'eps_low': 1.0}, 'rl.clip_low'), ({'dual_clip': 0.5}, 'rl.dual_clip'),
    ({'kl_coef': -1.0}, 'rl.kl'), ({'c_align': -1.0}, 'rl.c_align')])
def test_bad_config(bad, field):
  with pytest.raises(EagrlError, match=field):
    UpdateConfig(**({'micro_batch': 1} | bad))


def test_bad_use(params):
  with pytest.raises(EagrlError, match='align_layers'):
    compiled(UpdateConfig(micro_batch=1, align_layers=(2,)))
  with pytest.raises(ValueError, match='3 rows at a time'):
    compiled(UpdateConfig(micro_batch=3))(new_state(params), make_batch())
  with pytest.raises(EagrlError, match='ref_logprobs'):
    compiled(FULL)(new_state(params), make_batch().replace(ref_logprobs=None))
  with pytest.raises(EagrlError, match='rl.epochs=0'):
    policy_steps(lambda s, b: (s, {}), None, make_batch(), 0)
  with pytest.raises(EagrlError, match='rl.minibatches=3 must divide the 4 prompts'):
    policy_steps(lambda s, b: (s, {}), None, make_batch(), 1, 3)
