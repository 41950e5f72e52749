"""Features without a reference range are given what is usual among the train patients, and say so."""

import dataclasses
import json
import re

import numpy as np
import pytest

from eagrl_jax.ehr import store, usual
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.prompt import PromptConfig, flag, render
from eagrl_jax.ehr.warmup import scatter
from eagrl_jax.evaluation import patients

TABLE = FeatureTable((FeatureSpec('known', ref_low=1.0), FeatureSpec('bare', 'mg/dL', decimals=2), FeatureSpec('rare'),
                      FeatureSpec('levels', kind='ordinal', levels=((1.0, 'low'), (2.0, 'high')))))


@pytest.fixture
def values():
  """100 patients of two visits, the last 50 to train on; others have other values."""
  r = np.random.default_rng(0)
  out = r.normal(10, 2, (100, 2, 4))
  out[:50] *= 100
  out[:, 1, 1] = np.nan
  out[usual.LEAST - 1 + 50:, :, 2] = np.nan
  return out.astype(np.float32)


def test_a_range_is_the_middle_of_the_train_patients_values(values):
  train = np.arange(50, 100)
  made = usual.ranges(TABLE, values, train)
  low, high = np.quantile(values[50:, 0, 1], (0.2, 0.8))
  assert (made[1].ref_low, made[1].ref_high) == pytest.approx((low, high), rel=5e-3) and made[1].usual
  assert made[1].ref_low == round(made[1].ref_low, 2)
  flags = [flag(made[1], v) for v in values[50:, 0, 1]]
  assert 8 <= sum(f.startswith('H') for f in flags) <= 12 and 8 <= sum(f.startswith('L') for f in flags) <= 12
  for f in (0, 2, 3):  # a bound, too few patients, words
    assert made[f] == TABLE[f]
  every = usual.ranges(TABLE, values, train, replace=True)
  assert [spec.usual for spec in every] == [True, True, False, False] and every[0].ref_high is not None
  one_more = values.copy()
  one_more[99, 0, 2] = 7.0
  assert usual.ranges(TABLE, one_more, train)[2].usual


def test_a_feature_that_is_mostly_nought_is_high_where_it_is_not():
  values = np.where(np.arange(100)[:, None, None] % 10, 0.0, 1.0)
  made = usual.ranges(FeatureTable((FeatureSpec('ascites'),)), values, np.arange(100))
  assert [flag(made[0], v) for v in (0, 1)] == ['', 'H']
  np.testing.assert_array_equal(scatter(made, values[:, 0], np.random.default_rng(0)), values[:, 0])


def test_a_narrow_range_far_from_nought_keeps_its_width():
  """The specific gravity of urine: its first three digits say nothing."""
  values = np.random.default_rng(0).normal(1.0135, 0.0015, (200, 1, 1))
  made = usual.ranges(FeatureTable((FeatureSpec('specific gravity', decimals=3),)), values, np.arange(200))
  flags = [flag(made[0], v) for v in values[:, 0, 0]]
  assert 35 <= sum(f.startswith('H') for f in flags) <= 45 and 35 <= sum(f.startswith('L') for f in flags) <= 45


def test_prompt_and_report_call_it_usual(values):
  made = usual.ranges(TABLE, values, np.arange(50, 100))
  say = lambda table: render(table, values[60].astype(np.float64), np.array([24.0, 48.0]), 60, 1, setting='patients',
                             config=PromptConfig()).text
  assert re.search(r'- bare \(Unit: mg/dL. Usual range: [\d.]+ to [\d.]+.\)', say(made))
  assert 'Usual' not in say(TABLE) and '- known (Unit: /. Reference range: 1 or more.)' in say(made)
  shown = {'label': 'case 1', 'hours': [24.0], 'features': [
      {'name': 'bare', 'unit': '', 'ref_low': 8.0, 'ref_high': 12.0, 'values': [13.0], 'usual': True},
      {'name': 'known', 'unit': '', 'ref_low': 1.0, 'ref_high': None, 'values': [13.0]}]}
  assert [row['range_kind'] for row in patients.case(shown)['top']] == ['usual', 'ref.']


def test_it_is_kept_with_the_features(values, tmp_path):
  made = usual.ranges(TABLE, values, np.arange(50, 100))
  (tmp_path / 'features.json').write_text(json.dumps([dataclasses.asdict(spec) for spec in made]))
  assert [spec.usual for spec in store.read_features(tmp_path / 'features.json')] == [False, True, False, False]
