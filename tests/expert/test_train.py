"""Ensemble training: rank statistic, independence of the members, early stopping, no second compile."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from configs import expert
from eagrl_jax.expert import ensemble
from eagrl_jax.expert import train as expert_train
from eagrl_jax.expert.concare import ConCareConfig
from eagrl_jax.stages import settings
from eagrl_jax.types import EagrlError, ExpertBatch

CFG = expert_train.ExpertTrainConfig(
    ConCareConfig(hidden=8, heads=2, ffn=8, dropout=0.1), members=2, batch=32, epochs=25, patience=8,
    learning_rate=1e-2, chunk=32)


def published() -> expert_train.ExpertTrainConfig:
  return settings.expert(expert.get_config('published'))


def toy(n: int, seed: int) -> ExpertBatch:
  """The outcome is the last visit's first feature plus the second one's first visit."""
  rng = np.random.default_rng(seed)
  length = rng.integers(1, 4, n)
  valid = np.arange(3) < length[:, None]
  values = rng.normal(size=(n, 3, 4)).astype(np.float32) * valid[..., None]
  score = 2 * values[np.arange(n), length - 1, 0] + values[:, 0, 1] + 0.2 * rng.normal(size=n)
  return ExpertBatch(
      values=values, observed=np.ones_like(values) * valid[..., None], valid=valid,
      hours=np.tile(np.arange(3, dtype=np.float32) * 24, (n, 1)), static=np.zeros((n, 2), np.float32),
      label=(score > 0).astype(np.float32))


@pytest.fixture(scope='module')
def trained():
  calls = []
  compiled = expert_train._epoch._cache_size()
  params, history = expert_train.train_ensemble(
      jax.random.key(0), CFG, toy(200, 0), toy(70, 1), lambda epoch, m, _: calls.append((epoch, m)))
  return params, history, calls, expert_train._epoch._cache_size() - compiled


@pytest.mark.parametrize('select_on', expert_train.SELECT_ON)
def test_a_member_without_a_number_is_refused(select_on):
  cfg = dataclasses.replace(CFG, learning_rate=1e20, select_on=select_on, epochs=2)
  seen = []
  with pytest.raises(EagrlError, match='expert.learning_rate=1e[+]20: 2 of 2 members are NaN from the first epoch on'):
    expert_train.train_ensemble(jax.random.key(0), cfg, toy(64, 0), toy(32, 1), lambda _, m, __: seen.append(m))
  assert np.isnan([m['valid_auroc'] for m in seen]).all()


def test_auroc_is_sklearns_with_ties_and_padding():
  rng = np.random.default_rng(0)
  label = rng.integers(0, 2, 60).astype(np.float32)
  score = np.round(label + rng.normal(size=60), 1).astype(np.float32)
  valid = rng.random(60) < 0.8
  got = expert_train.auroc(jnp.asarray(score), jnp.asarray(label), jnp.asarray(valid))
  np.testing.assert_allclose(got, roc_auc_score(label[valid], score[valid]), atol=1e-6)
  assert expert_train.auroc(jnp.asarray(score), jnp.zeros(60), jnp.asarray(valid)) == 0.5


def test_learns_a_toy_task(trained):
  params, history, calls, _ = trained
  test = toy(150, 2)
  prob = expert_train.predict(params, CFG.model, test)
  assert prob.shape == (2, 150) and prob.dtype == np.float32
  assert roc_auc_score(test.label, prob.mean(0)) > 0.9
  assert np.all(history['loss'][-1] < 0.7 * history['loss'][0])
  assert [c[0] for c in calls] == list(range(1, len(history['loss']) + 1))


def test_best_epoch_is_kept(trained):
  params, history, *_ = trained
  valid = toy(70, 1)
  np.testing.assert_array_equal(history['best_epoch'], history['valid_loss'].argmin(0) + 1)
  prob = expert_train.predict(params, CFG.model, valid)
  bce = -np.mean(valid.label * np.log(prob) + (1 - valid.label) * np.log(1 - prob), 1)
  np.testing.assert_allclose(bce, history['valid_loss'].min(0), rtol=1e-4)
  auc = [roc_auc_score(valid.label, p) for p in prob]
  np.testing.assert_allclose(auc, history['valid_auroc'][history['best_epoch'] - 1, [0, 1]], atol=1e-5)


def test_member_does_not_depend_on_the_others(trained):
  params, *_ = trained
  alone, _ = expert_train.train_ensemble(
      jax.random.key(0), dataclasses.replace(CFG, members=1), toy(200, 0), toy(70, 1))
  test = toy(40, 3)
  np.testing.assert_allclose(expert_train.predict(alone, CFG.model, test)[0],
                             expert_train.predict(params, CFG.model, test)[0], atol=1e-3)
  assert not np.allclose(*expert_train.predict(params, CFG.model, test), atol=1e-2)  # two seeds, two models


def test_vmapped_prediction_is_the_members_own(trained):
  params, *_ = trained
  test = toy(40, 3)
  got = expert_train.predict(params, CFG.model, test, chunk=16)
  alone = jax.jit(lambda member: ensemble.member_logits(member, CFG.model, test))
  for e in range(2):
    member = jax.tree.map(lambda x: x[e], params)
    logit, _ = alone(member)
    np.testing.assert_allclose(got[e], jax.nn.sigmoid(logit), atol=1e-6)


def test_patience_stops_and_freezes():
  noise = toy(70, 1).replace(label=np.random.default_rng(9).integers(0, 2, 70).astype(np.float32))
  cfg = dataclasses.replace(  # the published recipe on a narrow model: one member, all rows in one batch
      published(), model=dataclasses.replace(CFG.model, time_attention='pyehr'), patience=2)
  _, history = expert_train.train_ensemble(jax.random.key(0), cfg, toy(200, 0), noise)
  ran = len(history['loss'])
  assert ran < cfg.epochs and ran == history['best_epoch'].max() + 2
  for e, best in enumerate(history['best_epoch']):
    assert history['valid_auroc'][:best + 2, e].argmax() + 1 == best


def test_going_on_from_a_state_equals_never_stopping(trained):
  kept = {}

  def keep(epoch, _, state):
    if epoch == 3:
      kept['state'] = jax.device_get(state)

  key = jax.random.key(0)
  expert_train.train_ensemble(key, dataclasses.replace(CFG, epochs=3), toy(200, 0), toy(70, 1), keep)
  state = jax.tree.map(jnp.asarray, kept['state'])
  jax.tree.map(lambda x, like: chex.assert_equal_shape([x, like]), state,
               expert_train.abstract(key, CFG, toy(200, 0)))
  assert all(x.sharding.device_set == {jax.devices()[0]} for x in jax.tree.leaves(
      expert_train.abstract(key, CFG, toy(200, 0))))  # a checkpoint of another machine is read onto this one
  params, history = expert_train.train_ensemble(key, CFG, toy(200, 0), toy(70, 1), state=state)
  jax.tree.map(np.testing.assert_array_equal, params, trained[0])
  np.testing.assert_array_equal(history['loss'], trained[1]['loss'][3:])


def test_epochs_and_chunks_compile_once(trained):
  params, _, _, compiled = trained
  assert compiled == 1
  before = expert_train._probability._cache_size()
  expert_train.predict(params, CFG.model, toy(33, 2), chunk=10)
  expert_train.predict(params, CFG.model, toy(7, 3), chunk=10)
  assert expert_train._probability._cache_size() == before + 1


def test_published_recipe():
  cfg = published()
  assert (cfg.members, cfg.batch, cfg.epochs, cfg.patience, cfg.select_on) == (1, 256, 50, 5, 'auroc')
  assert (cfg.model.hidden, cfg.model.heads, cfg.model.ffn, cfg.model.dropout) == (128, 4, 64, 0.1)
  assert (cfg.model.time_attention, cfg.model.decov, cfg.learning_rate) == ('pyehr', 10, 1e-3)


@pytest.mark.parametrize(('change', 'message'), [
    (lambda b: b.replace(label=np.zeros_like(b.label)), 'one outcome class'),
    (lambda b: b.replace(values=np.full_like(b.values, np.nan)), 'values of the train split'),
    (lambda b: jax.tree.map(lambda x: x[:0], b), 'train split is empty'),
])
def test_bad_split_is_one_clear_line(change, message):
  with pytest.raises(EagrlError, match=message):
    expert_train.train_ensemble(jax.random.key(0), CFG, change(toy(20, 0)), toy(20, 1))


def test_bad_config_names_the_field():
  with pytest.raises(EagrlError, match='select_on'):
    expert_train.ExpertTrainConfig(select_on='f1')
  with pytest.raises(EagrlError, match='members'):
    expert_train.ExpertTrainConfig(members=0)
  with pytest.raises(EagrlError, match='learning_rate'):
    expert_train.ExpertTrainConfig(learning_rate=0.0)
