"""Perturbations: exactly the stated share changes, the same way every time, and nothing else."""

import inspect

import numpy as np
import pytest

from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.normalise import Statistics
from eagrl_jax.evaluation import perturb
from eagrl_jax.types import EagrlError

TABLE = FeatureTable((
    FeatureSpec('glucose', 'mg/dL', hard_low=5, hard_high=2000, accepted_units=(('mg/dl', 1, 0), ('mmol/L', 18, 0))),
    FeatureSpec('temperature', 'degC', hard_low=30, hard_high=43, accepted_units=(('degF', 5 / 9, -160 / 9),)),
    FeatureSpec('pH', hard_low=6.5, hard_high=8.0), FeatureSpec('lactate', 'mmol/L', log=True),
    FeatureSpec('GCS eye', kind='ordinal', levels=((1.0, 'None'), (2.0, 'To pain'), (4.0, 'Spontaneously')))))
STATISTICS = Statistics(TABLE.names, np.array([0, 0, 0, 1, 0], bool), np.zeros(5, np.float32),
                        np.array([30, 0.8, 1, 0.5, 1], np.float32), np.zeros(5, np.float32), np.ones(5, np.int64),
                        ('pH',), 0.0, 1.0)
ROWS = np.array([7, 3, 11])


@pytest.fixture
def values():
  rng = np.random.default_rng(0)
  x = np.stack([rng.normal(120, 30, (3, 4)), rng.normal(37, 0.5, (3, 4)), rng.normal(7.4, 0.05, (3, 4)),
                rng.lognormal(0.5, 0.4, (3, 4)), rng.choice([1.0, 2, 4], (3, 4))], -1).astype(np.float32)
  x[0, 1:, 2] = x[1, :, 3] = np.nan
  return x


@pytest.mark.parametrize(('level', 'moved'), [(0.2, 0), (0.4, 8), (0.6, 12), (1.0, 20)])
def test_order_moves_exactly_the_share_and_a_patient_is_always_moved_alike(level, moved):
  rows = np.arange(5)
  order = perturb.order(rows, 20, level, seed=1)
  assert (np.sort(order) == np.arange(20)).all()
  assert ((order != np.arange(20)).sum(1) == (round(level * 20))).all()
  np.testing.assert_array_equal(perturb.order(rows[::-1], 20, level, seed=1)[::-1], order)
  assert (order != perturb.order(rows, 20, level, seed=2)).any() and (order[0] != order[1]).any()


@pytest.mark.parametrize(('features', 'level', 'moved'), [
    (5, 0.2, 2), (3, 0.2, 2), (2, 0.1, 2), (1, 1.0, 0), (5, 0, 0)])
def test_no_single_feature_changes_places_with_itself(features, level, moved):
  order = perturb.order(np.arange(4), features, level, seed=0)
  assert ((order != np.arange(features)).sum(1) == moved).all()


def test_noise_is_of_train_size_on_each_features_scale_and_grows_with_the_level():
  rows = np.arange(400)
  x = np.tile(np.array([500, 36, 7.4, 3, 2], np.float32), (400, 2, 1))
  one, two = (perturb.noise(x, rows, TABLE, STATISTICS, level, seed=0) for level in (0.5, 1.0))
  assert np.std(one[..., 0] - x[..., 0]) == pytest.approx(15, rel=0.1)
  assert np.std(np.log1p(one[..., 3]) - np.log1p(x[..., 3])) == pytest.approx(0.25, rel=0.1)
  assert np.mean(np.log1p(one[..., 3]) - np.log1p(x[..., 3])) == pytest.approx(0, abs=0.03)
  np.testing.assert_allclose(two[..., 0] - x[..., 0], 2 * (one[..., 0] - x[..., 0]), rtol=1e-3, atol=1e-2)
  assert (one[..., 2] == x[..., 2]).all()  # pH never varied in train
  assert set(np.unique(two[..., 4])) == {1.0, 2.0, 4.0}  # an ordinal feature stays one of its words


def test_noise_keeps_gaps_and_the_hard_range(values):
  out = perturb.noise(values, ROWS, TABLE, STATISTICS, 20.0, seed=0)
  np.testing.assert_array_equal(np.isnan(out), np.isnan(values))
  assert np.nanmin(out[..., 1]) >= 30 and np.nanmax(out[..., 1]) <= 43


def test_drop_takes_whole_features_and_more_of_the_same(values):
  fewer, fewest = (perturb.drop(values, ROWS, level, seed=0) for level in (0.25, 0.5))
  here, there, left = (np.isfinite(x).any(1) for x in (values, fewer, fewest))
  assert (here.sum(1) == [5, 4, 5]).all() and (there.sum(1) == [4, 3, 4]).all() and (left.sum(1) == [3, 2, 3]).all()
  assert not (left & ~there).any()
  kept = np.isfinite(fewer)
  np.testing.assert_array_equal(fewer[kept], values[kept])


def test_units_use_the_specs_own_and_else_the_factor(values):
  out, _, detail = perturb.units(values, TABLE, 1.0, seed=0)
  np.testing.assert_allclose(out[..., 0], np.where(values[..., 0] / 18 >= 5, values[..., 0] / 18, np.nan), rtol=1e-5)
  assert np.isnan(out[..., 1]).all() and np.isnan(out[..., 2]).all()  # 98 degF and a pH of 74 are no degC and no pH
  np.testing.assert_allclose(out[..., 3], 10 * values[..., 3], rtol=1e-6)
  np.testing.assert_array_equal(out[..., 4], values[..., 4])
  assert detail == {'features_by_spec': 2, 'features_times_ten': 2,
                    'values_out_of_range': int(np.isfinite(values).sum() - np.isfinite(out).sum())}


def test_units_change_for_every_patient_alike(values):
  half, _, detail = perturb.units(values, TABLE, 0.5, seed=0)
  changed = ~((half == values) | (np.isnan(half) & np.isnan(values))).all(1)
  assert detail['features_by_spec'] + detail['features_times_ten'] == 2
  assert (changed.any(0).sum()) == 2


def test_a_limit_is_one_in_any_unit(values):
  """But where the value goes missing; its side changes with a unit that counts the other way round."""
  features = FeatureTable((*TABLE.specs[:3], FeatureSpec('turned', accepted_units=(('-', -1.0, 0.0),)), TABLE[4]))
  limits = np.where(np.isnan(values), 0, 1).astype(np.int8)
  out, signs, _ = perturb.units(values, features, 1.0, seed=0, censor=limits)
  seen = np.isfinite(out)
  np.testing.assert_array_equal(signs, np.where(seen, np.where(np.arange(5) == 3, -1, 1), 0))
  assert seen[..., 3].any() and seen[..., 0].any() and (limits == 1).sum() == np.isfinite(values).sum()
  found = perturb.conditions(('units', 'noise'), {'units': (1.0,), 'noise': (0.5,)}, values, ROWS, features, STATISTICS,
                             seed=0, censor=limits)
  np.testing.assert_array_equal(found[2].censor, signs)
  assert found[0].censor is None and found[3].censor is None  # the patients' own where values are


def test_conditions_hold_both_controls_and_leave_the_record_alone(values):
  before = values.copy()
  levels = {'order': (0.5,), 'noise': (0.5, 1.0), 'drop': (0.5,), 'units': (0.5,)}
  found = perturb.conditions(perturb.KINDS, levels, values, ROWS, TABLE, STATISTICS, seed=0)
  assert [(c.kind, c.level) for c in found] == [
      ('none', 0), ('sampling', 0), ('order', 0.5), ('noise', 0.5), ('noise', 1.0), ('drop', 0.5), ('units', 0.5),
      ('wording', 1.0)]
  assert [c.draw for c in found] == [0, 1, 0, 0, 0, 0, 0, 0]
  assert found[-1].wording == 'rephrased' and (found[2].values is values) and found[2].order is not None
  np.testing.assert_array_equal(values, before)


def test_no_perturbation_can_see_a_label():
  for function in (perturb.order, perturb.noise, perturb.drop, perturb.units, perturb.conditions):
    assert not {'label', 'labels', 'cohort', 'data'} & set(inspect.signature(function).parameters)


@pytest.mark.parametrize(('kinds', 'levels', 'field'), [
    (('orders',), {}, 'robustness.kinds'), (('order',), {'order': (1.2,)}, 'robustness.levels.order'),
    (('noise',), {'noise': (0.0,)}, 'robustness.levels.noise'), (('drop',), {'drop': (1.0,)}, 'robustness.levels.drop'),
    (('units',), {'units': (float('nan'),)}, 'robustness.levels.units'),
    (('order', 'order'), {}, 'robustness.kinds'), (('order',), {'order': (0.2, 0.2)}, 'robustness.levels.order')])
def test_impossible_settings_are_refused_by_name(kinds, levels, field):
  with pytest.raises(EagrlError, match=field):
    perturb.check(kinds, levels)
  perturb.check(perturb.KINDS, {'noise': (3.0,), 'order': (1.0,), 'drop': (0.9,)})
