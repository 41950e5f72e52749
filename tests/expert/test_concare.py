"""ConCare against a plain loop in numpy, and the invariances that the released code lacks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagrl_jax.expert.concare import ConCare, ConCareConfig, declare, decov, init
from eagrl_jax.types import EagrlError, ExpertBatch

SMALL = ConCareConfig(hidden=8, heads=2, ffn=6, time_dim=4)


def make_batch(b=5, t=4, f=3, seed=0) -> ExpertBatch:
  rng = np.random.default_rng(seed)
  length = rng.integers(1, t + 1, b)
  length[0] = t
  valid = np.arange(t) < length[:, None]
  real = valid[..., None].astype(np.float32)
  hours = np.cumsum(rng.uniform(1, 40, (b, t)), 1).astype(np.float32) * valid
  return ExpertBatch(
      values=rng.normal(size=(b, t, f)).astype(np.float32) * real,
      observed=(rng.random((b, t, f)) < 0.6).astype(np.float32) * real, valid=valid, hours=hours,
      static=rng.normal(size=(b, 2)).astype(np.float32), label=rng.integers(0, 2, b).astype(np.float32))


def make_expert(cfg: ConCareConfig, batch: ExpertBatch, seed=1):
  """The jitted forward pass, and parameters with every constant moved so that a wrong place or sign shows."""
  model = ConCare(cfg, batch.values.shape[-1], batch.static.shape[-1])
  rng = np.random.default_rng(seed)
  specs = declare(cfg, model.channels, model.static)
  params = {k: (s.offset + rng.normal(size=s.shape) * 0.4).astype(np.float32) for k, s in specs.items()}
  return jax.jit(lambda params, batch: model.apply({'params': params}, batch)), model, params


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def softmax(x):
  e = np.exp(x - x.max())
  return e / e.sum()


def naive(params, cfg: ConCareConfig, batch: ExpertBatch, i: int) -> tuple[float, np.ndarray, np.ndarray]:
  """One patient, one feature and one visit at a time, in float64 and without any padding."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  dense = lambda name, x: x @ p[name] + p[f'{name}_bias']
  visits = int(batch.valid[i].sum())
  tokens = []
  for f in range(batch.values.shape[-1]):
    h, states = np.zeros(cfg.hidden), []
    for t in range(visits):
      x = [batch.values[i, t, f]] + ([batch.observed[i, t, f]] if cfg.use_mask_channel else [])
      into = [p['gru_in_bias'][g, f] + sum(x[c] * p['gru_in'][g, c, f] for c in range(len(x))) for g in range(3)]
      reset = sigmoid(into[0] + h @ p['gru_rec'][0, f])
      update = sigmoid(into[1] + h @ p['gru_rec'][1, f])
      new = np.tanh(into[2] + reset * (h @ p['gru_rec'][2, f] + p['gru_rec_bias'][f]))
      h = (1 - update) * new + update * h
      states.append(h)
    query = states[-1] @ p['time_query'][f]
    energy = []
    for t in range(visits):
      s = (states[t] @ p['time_key'][f]) @ query
      gap = {'visit': visits - 1 - t, 'hour': batch.hours[i, visits - 1] - batch.hours[i, t],
             'day': (batch.hours[i, visits - 1] - batch.hours[i, t]) / 24}[cfg.time_unit]
      if cfg.time_attention == 'new':
        energy.append(np.tanh(s / (p['time_rate'][f] * np.log(np.e + (1 - sigmoid(s)) * gap))))
      else:
        energy.append(max(0, sigmoid(s) / (sigmoid(p['time_rate'][f]) * np.log(2.72 + 1 - sigmoid(s)) * (gap + 1))))
    weight = softmax(np.array(energy))
    tokens.append(sum(weight[t] * states[t] for t in range(visits)))
  tokens.append(np.tanh(dense('static_token', batch.static[i].astype(np.float64))))
  x = np.stack(tokens)
  width, context = cfg.hidden // cfg.heads, np.zeros_like(x)
  q, k, v = dense('query', x), dense('key', x), dense('value', x)
  for n in range(len(x)):
    for head in range(cfg.heads):
      part = slice(head * width, (head + 1) * width)
      a = softmax(np.array([q[n, part] @ k[m, part] / np.sqrt(width) for m in range(len(x))]))
      context[n, part] = sum(a[m] * v[m, part] for m in range(len(x)))
  x = x + dense('mix', context)
  x = x + dense('ffn_out', np.maximum(dense('ffn_in', x), 0))
  final = dense('final_query', x[-1])
  attention = softmax(np.array([dense('final_key', x[n]) @ final for n in range(len(x))]))
  pooled = sum(attention[n] * dense('final_value', x[n]) for n in range(len(x)))
  return float(dense('head', pooled)[0]), attention, context


@pytest.mark.parametrize('cfg', [
    SMALL,
    ConCareConfig(hidden=8, heads=2, ffn=6, time_dim=4, time_attention='pyehr', use_mask_channel=True),
    ConCareConfig(hidden=8, heads=4, ffn=6, time_dim=4, time_unit='day', use_mask_channel=True),
    ConCareConfig(hidden=8, heads=2, ffn=6, time_dim=4, time_attention='pyehr', time_unit='hour'),
])
def test_matches_naive_numpy(cfg):
  batch = make_batch()
  forward, _, params = make_expert(cfg, batch)
  logit, attention, penalty = forward(params, batch)
  want = [naive(params, cfg, batch, i) for i in range(len(batch.label))]
  np.testing.assert_allclose(logit, [w[0] for w in want], atol=1e-5)
  np.testing.assert_allclose(attention, [w[1] for w in want], atol=1e-5)
  contexts = np.stack([w[2] for w in want])
  total = 0
  for n in range(contexts.shape[1]):
    c = np.cov(contexts[:, n], rowvar=False)
    total += 0.5 * (np.sum(c**2) - np.sum(np.diag(c) ** 2))
  np.testing.assert_allclose(penalty, total, rtol=1e-4)


@pytest.mark.parametrize('rows', [3, 12])  # both sides of the Gram-matrix branch
def test_decov_is_off_diagonal_covariance(rows):
  x = np.random.default_rng(0).normal(size=(rows, 2, 6)).astype(np.float32)
  want = 0
  for n in range(2):
    c = np.cov(x[:, n], rowvar=False)
    want += 0.5 * np.sum((c - np.diag(np.diag(c))) ** 2)
  np.testing.assert_allclose(decov(jnp.asarray(x)), want, rtol=1e-5)


@pytest.mark.parametrize('attention', ['new', 'pyehr'])
@pytest.mark.parametrize('unit', ['visit', 'day'])
def test_padded_equals_unpadded(attention, unit):
  cfg = ConCareConfig(hidden=8, heads=2, ffn=6, time_attention=attention, time_unit=unit, use_mask_channel=True)
  batch = make_batch()
  forward, _, params = make_expert(cfg, batch)
  rng = np.random.default_rng(5)

  def lengthen(x):  # garbage on the padding must not matter
    return np.concatenate([x, rng.normal(size=(len(x), 6, *x.shape[2:])).astype(x.dtype)], 1)

  longer = batch.replace(values=lengthen(batch.values), observed=lengthen(batch.observed),
                         hours=lengthen(batch.hours) + 500, valid=np.pad(batch.valid, ((0, 0), (0, 6))))
  logit, attention, _ = forward(params, longer)
  for i in range(len(batch.label)):
    t = int(batch.valid[i].sum())
    alone = jax.tree.map(lambda x: x[i:i + 1], batch)
    alone = alone.replace(**{k: getattr(alone, k)[:, :t] for k in ('values', 'observed', 'valid', 'hours')})
    want, want_attention, penalty = forward(params, alone)
    np.testing.assert_allclose(logit[i], want[0], atol=1e-6)
    np.testing.assert_allclose(attention[i], want_attention[0], atol=1e-6)
    assert penalty == 0  # a batch of one has no covariance


def test_jit_equals_no_jit_and_row_order_does_not_matter():
  batch = make_batch(t=2, f=2)
  forward, model, params = make_expert(SMALL, batch)
  plain = forward(params, batch)
  with jax.disable_jit():
    for a, b in zip(model.apply({'params': params}, batch), plain, strict=True):
      np.testing.assert_allclose(a, b, atol=1e-6)
  order = np.array([3, 1, 4, 0, 2])
  shuffled = forward(params, jax.tree.map(lambda x: x[order], batch))
  np.testing.assert_allclose(shuffled[0], plain[0][order], atol=1e-6)


@pytest.mark.parametrize('attention', ['new', 'pyehr'])
def test_gradients_are_finite_with_nothing_measured(attention):
  batch = make_batch()
  batch.values[..., 1] = 0
  batch.observed[..., 1] = 0
  batch.valid[2] = False  # a patient without a single visit
  _, model, params = make_expert(ConCareConfig(hidden=8, heads=2, ffn=6, time_attention=attention), batch)

  def loss(params, values):
    logit, _, penalty = model.apply({'params': params}, batch.replace(values=values), deterministic=False,
                                    rngs={'dropout': jax.random.key(0)})
    return jnp.sum(logit**2) + penalty

  grads = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, batch.values)
  assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
  assert np.any(grads[1] != 0) and not np.any(grads[1][2])


def test_dropout_acts_only_in_training():
  batch = make_batch()
  forward, model, params = make_expert(SMALL, batch)
  run = jax.jit(lambda key: model.apply({'params': params}, batch, deterministic=False, rngs={'dropout': key})[0])
  first, second = run(jax.random.key(0)), run(jax.random.key(1))
  assert np.max(np.abs(first - second)) > 1e-3
  np.testing.assert_array_equal(run(jax.random.key(0)), first)
  mean = np.mean([run(jax.random.key(i)) for i in range(300)], 0)
  assert np.max(np.abs(mean - forward(params, batch)[0])) < np.max(np.abs(first - second))
  np.testing.assert_allclose(forward(params, batch)[1].sum(-1), 1, atol=1e-6)


def test_initialisation_follows_its_declaration():
  cfg = ConCareConfig()
  params = init(jax.random.key(0), cfg, 3, 0)  # no static facts: the static token is a learnt constant
  flax_params = jax.eval_shape(ConCare(cfg, 3, 0).init, jax.random.key(0), make_batch().replace(
      static=np.zeros((5, 0), np.float32)))['params']
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, flax_params)
  for name, spec in declare(cfg, 3, 0).items():
    centred = np.abs(np.asarray(params[name]) - spec.offset)
    assert np.all(centred <= spec.bound + 1e-6)
    if spec.bound and centred.size > 500:
      np.testing.assert_allclose(centred.mean(), spec.bound / 2, rtol=0.1)


@pytest.mark.parametrize(('field', 'kwargs'), [
    ('heads', {'hidden': 10, 'heads': 4}), ('time_attention', {'time_attention': 'concat'}),
    ('time_unit', {'time_unit': 'week'}), ('dropout', {'dropout': 1.0}), ('hidden', {'hidden': 0}), ('ffn', {'ffn': 0}),
    ('heads', {'heads': 0}), ('decov', {'decov': -1.0})])
def test_bad_config_names_the_field(field, kwargs):
  with pytest.raises(EagrlError, match=field):
    ConCareConfig(**kwargs)
