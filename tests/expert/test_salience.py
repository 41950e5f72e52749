"""Salience sources against manual loops; stability against hand-computed cases."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from eagrl_jax.expert import ensemble, salience, stability
from eagrl_jax.expert.concare import ConCareConfig
from eagrl_jax.types import EagrlError, ExpertBatch

F = 5
CFG = ConCareConfig(hidden=8, heads=2, ffn=6, use_mask_channel=True)


@pytest.fixture(scope='module')
def expert():
  rng = np.random.default_rng(0)
  n, t = 6, 3
  valid = np.arange(t) < rng.integers(1, t + 1, n)[:, None]
  observed = (rng.random((n, t, F)) < 0.7) * valid[..., None]
  observed[:, :, 2] = 0
  observed[4] = 0  # a patient with nothing measured at all
  batch = ExpertBatch(
      values=(rng.normal(size=(n, t, F)) * valid[..., None]).astype(np.float32), observed=observed.astype(np.float32),
      valid=valid, hours=np.zeros((n, t), np.float32), static=rng.normal(size=(n, 2)).astype(np.float32),
      label=np.zeros(n, np.float32))
  params = ensemble.init_members(jax.random.split(jax.random.key(3), 3), CFG, batch)
  return params, batch


@jax.jit
def _forward(member, batch):
  return ensemble.member_logits(member, CFG, batch)


def logits(params, batch, e):
  return _forward(jax.tree.map(lambda x: x[e], params), batch)


def normalised(raw, batch):
  raw = raw * (batch.observed.max(1) > 0)
  total = raw.sum(-1, keepdims=True)
  return np.divide(raw, total, out=np.zeros_like(raw), where=total > 0)


@pytest.mark.parametrize('source', salience.SOURCES)
def test_rows_sum_to_one_and_the_unmeasured_get_nothing(expert, source):
  params, batch = expert
  got = salience.member_salience(params, CFG, batch, source, chunk=4)
  want = np.ones(6)
  want[4] = 0
  assert got.shape == (3, 6, F) and got.dtype == np.float32 and np.all(got >= 0)
  np.testing.assert_allclose(got.sum(-1), np.tile(want, (3, 1)), atol=1e-6)
  assert not got[:, :, 2].any()
  mean = salience.ensemble_salience(got)
  np.testing.assert_allclose(mean.sum(-1), want, atol=1e-6)
  np.testing.assert_allclose(mean, got.mean(0), atol=1e-6)


def test_attention_drops_the_static_token(expert):
  params, batch = expert
  got = salience.member_salience(params, CFG, batch, 'attention')
  for e in range(3):
    np.testing.assert_allclose(got[e], normalised(np.asarray(logits(params, batch, e)[1])[:, :-1], batch), atol=1e-6)


def test_occlusion_equals_a_loop_over_features(expert):
  params, batch = expert
  got = salience.member_salience(params, CFG, batch, 'occlusion')
  for e in range(3):
    raw = np.zeros((6, F), np.float32)
    base = np.asarray(logits(params, batch, e)[0])
    for f in range(F):
      values, observed = batch.values.copy(), batch.observed.copy()
      values[..., f], observed[..., f] = 0, 0
      raw[:, f] = np.abs(np.asarray(logits(params, batch.replace(values=values, observed=observed), e)[0]) - base)
    np.testing.assert_allclose(got[e], normalised(raw, batch), atol=2e-4)


def test_grad_x_input_equals_finite_differences(expert):
  params, batch = expert
  got = salience.member_salience(params, CFG, batch, 'grad_x_input')
  raw, eps = np.zeros((6, F)), 1e-2
  for f in range(F):
    for t in range(3):
      for name in ('values', 'observed'):
        x = getattr(batch, name)
        ends = []
        for sign in (1, -1):
          moved = x.copy()
          moved[:, t, f] += sign * eps
          ends.append(np.asarray(logits(params, batch.replace(**{name: moved}), 1)[0], np.float64))
        raw[:, f] += np.abs((ends[0] - ends[1]) / (2 * eps) * x[:, t, f]) * batch.valid[:, t]
  np.testing.assert_allclose(got[1], normalised(raw, batch), atol=5e-3)


def all_measured(expert):
  params, batch = expert
  return params, batch.replace(observed=np.repeat(batch.valid[..., None], F, -1).astype(np.float32))


@pytest.mark.parametrize('source', ['attention', 'grad_x_input'])
def test_one_hot_channels_are_summed(expert, source):
  params, batch = all_measured(expert)
  owner = np.array([0, 1, 1, 2, 0])
  channels = salience.member_salience(params, CFG, batch, source)
  features = salience.member_salience(params, CFG, batch, source, owner)
  want = np.stack([channels[..., owner == f].sum(-1) for f in range(3)], -1)
  np.testing.assert_allclose(features, want, atol=1e-6)


def test_one_hot_channels_are_occluded_together(expert):
  params, batch = all_measured(expert)
  got = salience.member_salience(params, CFG, batch, 'occlusion', np.array([0, 1, 1, 2, 0]))
  base = np.asarray(logits(params, batch, 0)[0])
  raw = []
  for mine in ([0, 4], [1, 2], [3]):
    values, observed = batch.values.copy(), batch.observed.copy()
    values[..., mine], observed[..., mine] = 0, 0
    raw.append(np.abs(np.asarray(logits(params, batch.replace(values=values, observed=observed), 0)[0]) - base))
  raw = np.stack(raw, -1)
  np.testing.assert_allclose(got[0], raw / raw.sum(-1, keepdims=True), atol=2e-4)


def test_a_second_batch_compiles_nothing(expert):
  params, batch = expert
  salience.member_salience(params, CFG, batch, 'attention', chunk=5)
  before = salience._raw._cache_size()
  salience.member_salience(params, CFG, jax.tree.map(lambda x: x[:3], batch), 'attention', chunk=5)
  assert salience._raw._cache_size() == before


def test_stability_by_hand():
  a = [[0.5, 0.3, 0.15, 0.05], [0.4, 0.3, 0.2, 0.1]]
  b = [[0.5, 0.1, 0.35, 0.05], [0.4, 0.3, 0.2, 0.1]]
  got = stability.stability(np.array([a, b], np.float32), 2)
  assert got['jaccard'] == pytest.approx((1 / 3 + 1) / 2)
  assert got['chance'] == pytest.approx((4 * 1 / 3 + 1) / 6)  # of 6 pairs of 4 features: 1 same, 4 share one, 1 none
  # Mean ranks: a = (4, 3, 2, 1); b = (4, 2.5, 2.5, 1), ranked with a tie.
  assert got['spearman'] == pytest.approx(np.corrcoef([4, 3, 2, 1], [4, 2.5, 2.5, 1])[0, 1])
  same = stability.stability(np.array([a, a], np.float32), 2)
  assert same['jaccard'] == 1 and same['spearman'] == pytest.approx(1)


def test_chance_is_what_random_salience_gets():
  rng = np.random.default_rng(0)
  got = stability.stability(rng.random((2, 4000, 20)).astype(np.float32), 4)
  assert got['jaccard'] == pytest.approx(got['chance'], abs=0.005)
  assert got['chance'] == pytest.approx(4 / 36, rel=0.15)


def test_one_member_has_no_stability(expert):
  params, batch = expert
  got = stability.stability(salience.member_salience(params, CFG, batch, 'attention')[:1], 2)
  assert all(np.isnan(v) for v in got.values())
  with pytest.raises(EagrlError, match='expert.salience'):
    salience.member_salience(params, CFG, batch, 'shap')
