"""One-hot channels of the expert: against a loop, through its training and back to one salience a variable."""

from __future__ import annotations

import dataclasses
import json

import mimic4_fixture
import numpy as np
import pytest
from test_validation import cohort_of

from configs import defaults
from eagrl_jax.ehr import channels, normalise, store
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable
from eagrl_jax.ehr.prompt import PromptConfig, render
from eagrl_jax.ehr.records import to_visits
from eagrl_jax.ehr.sources import mimic4, mimic4_features
from eagrl_jax.ehr.sources.bounded import Grid
from eagrl_jax.expert import salience
from eagrl_jax.mesh import local_mesh
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages import expert as expert_stage
from eagrl_jax.stages import prepare, robustness, settings
from eagrl_jax.stages.context import Context
from eagrl_jax.types import EagrlError

EYE = FeatureSpec('eye', kind='ordinal', levels=((1.0, 'none'), (2.0, 'to pain'), (4.0, 'spontaneous')),
                  encoding='one_hot')
SPECS = (FeatureSpec('a'), EYE, FeatureSpec('b'))
# (patient, hour, feature, value); train is patients 0 and 1, which never have 'to pain'
EVENTS = [(0, 0, 0, 1.0), (0, 1, 1, 4.0), (0, 3, 1, 1.0), (1, 0, 1, 1.0), (1, 0, 2, 5.0), (1, 1, 0, 3.0),
          (2, 0, 1, 1.0), (2, 1, 1, 2.0), (2, 2, 0, 2.0), (2, 3, 1, 3.4)]


def applied(specs=SPECS, train=(0, 1), **change):
  cohort = cohort_of(EVENTS, specs=specs, **change)
  visits = to_visits(cohort, 1.0, 4)
  statistics = normalise.fit(visits, np.array(train), cohort.features, cohort.age)
  return normalise.apply(statistics, visits, cohort), visits, statistics, cohort


def test_the_latest_level_has_the_one():
  batch, visits, _, cohort = applied(train=(0, 1, 2))
  assert batch.values.shape == batch.observed.shape == (3, 4, 5)
  assert channels.owners(cohort.features).tolist() == [0, 1, 1, 1, 2]
  for p in range(3):
    known = None
    for t in range(4):
      now = visits.values[p, t, 1]
      known = known if np.isnan(now) else now
      for k, (level, _) in enumerate(EYE.levels):
        closest = known is not None and min((abs(x - known), x) for x, _ in EYE.levels)[1] == level
        assert batch.values[p, t, 1 + k] == (closest and visits.valid[p, t])
        assert batch.observed[p, t, 1 + k] == (not np.isnan(now))


def test_the_other_channels_are_as_without_it():
  batch, *_ = applied()
  plain, *_ = applied((SPECS[0], dataclasses.replace(EYE, encoding='number'), SPECS[2]))
  assert plain.values.shape == (3, 4, 3)
  for field in ('values', 'observed'):
    np.testing.assert_array_equal(getattr(batch, field)[..., [0, 4]], getattr(plain, field)[..., [0, 2]])
  np.testing.assert_array_equal(batch.static, plain.static)


def test_a_level_that_train_never_had_is_unknown():
  batch, _, statistics, _ = applied()
  assert statistics.levels == {'eye': (0, 2)}
  assert batch.values[2, :, 1:4].tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1]]


def test_statistics_are_kept_with_their_levels(tmp_path):
  for specs, has in ((SPECS, True), ((SPECS[0], FeatureSpec('eye'), SPECS[2]), False)):
    _, _, statistics, _ = applied(specs)
    normalise.save(tmp_path / 's.json', statistics)
    assert ('levels' in json.loads((tmp_path / 's.json').read_text())) == has  # a run of before has no such entry
    assert normalise.load(tmp_path / 's.json').levels == statistics.levels


def test_a_features_file_says_which(tmp_path):
  text = '- {name: eye, kind: ordinal, levels: [[1, none], [4, spontaneous]], encoding: one_hot}\n'
  (tmp_path / 'f.yaml').write_text(text)
  table = store.read_features(tmp_path / 'f.yaml')
  assert len(channels.owners(table)) == 2 and FeatureTable.from_json(table.to_json())[0] == table[0]
  assert all('encoding' not in row for row in FeatureTable((FeatureSpec('x'),)).to_json())  # its hash stays
  for old, new, match in (('one_hot', 'onehot', 'encoding must be number or one_hot'),
                          ('1, none', '4, none', 'rising order'),
                          ('levels: [[1, none], [4, spontaneous]], ', '', 'give its levels')):
    (tmp_path / 'f.yaml').write_text(text.replace(old, new))
    with pytest.raises(EagrlError, match=match):
      store.read_features(tmp_path / 'f.yaml')


def test_a_feature_that_stays_keeps_its_place_beside_wide_ones_that_move():
  table = FeatureTable((*SPECS, FeatureSpec('z')))  # widths of its places as of SPECS, and one
  x = np.arange(1, 1 + 2 * len(channels.owners(table)), dtype=np.float32).reshape(2, 1, -1)
  widths = np.bincount(channels.owners(table)).tolist()
  assert widths == [1, 3, 1, 1]
  found = channels.moved(table, np.array([[1, 0, 2, 3], [0, 3, 2, 1]]), x)[:, 0]
  assert found[0].tolist() == [2, 1, 0, 0, 5, 6]
  assert found[1].tolist() == [7, 12, 0, 0, 11, 8]
  np.testing.assert_array_equal(channels.moved(table, np.array([[0, 1, 2, 3]] * 2), x), x)


def test_the_seventeen_variables_of_mimic_are_forty_two_channels_and_seventeen_lines(tmp_path):
  features = mimic4_features.FEATURES
  owner = channels.owners(features)
  assert len(owner) == 42 and np.bincount(owner)[[0, 9, 10, 11, 12]].tolist() == [2, 4, 6, 5, 13]
  assert sorted(np.bincount(owner).tolist())[:12] == [1] * 12
  cohort = mimic4.load(mimic4_fixture.write(tmp_path), task='mortality', index='icu', grid=Grid(6.0, 'last', 48.0))
  visits = to_visits(cohort, 6.0, 8, 'last', 48.0)
  batch = normalise.apply(normalise.fit(visits, np.arange(len(cohort)), features, cohort.age), visits, cohort)
  assert batch.values.shape[-1] == 42
  i = cohort.subject_id.tolist().index('6')
  for name, level in (('GCS eye opening', 3), ('GCS motor response', 6), ('GCS total', 14)):
    f = features.find(name)
    at = [value for value, _ in features[f].levels].index(level)
    last = batch.values[i][visits.valid[i]][-1]
    assert last[owner == f].tolist() == np.eye(len(features[f].levels))[at].tolist()
  text = render(features, visits.values[i][visits.valid[i]], visits.hours[i][visits.valid[i]], 50, 1, setting='',
                config=PromptConfig(style='compact')).text
  assert text.count('GCS eye opening') == 1 and ' GCS eye opening L to speech\n' in text


def small(tmp_path, n=48):
  """A prepared run on a CSV with one one-hot feature."""
  rng = np.random.default_rng(0)
  rows = [(f'k{i}', h, name, value) for i in range(n) for h in (0, 5, 25)
          for name, value in (('eye', rng.choice([1, 2, 4])), ('x', rng.normal()), ('y', rng.normal()))]
  (tmp_path / 'e.csv').write_text('patient,time,feature,value\n' + ''.join(','.join(map(str, r)) + '\n' for r in rows))
  (tmp_path / 'o.csv').write_text('patient,label\n' + ''.join(f'k{i},{i % 2}\n' for i in range(n)))
  (tmp_path / 'f.yaml').write_text('- {name: x}\n- {name: eye, kind: ordinal, encoding: one_hot, levels: [[1, none], '
                                   '[2, to pain], [4, spontaneous]]}\n- {name: y}\n')
  config = defaults.get_config('csv')
  config.data.update(path=str(tmp_path / 'e.csv'), outcomes=str(tmp_path / 'o.csv'), features=str(tmp_path / 'f.yaml'),
                     max_visits=2)
  config.expert.update(members=2, hidden=8, heads=2, ffn=8, epochs=1, batch=16, checkpoint_every=1)
  context = Context(config, tmp_path / 'run', local_mesh(1))
  prepare.run(context)
  return context


def test_the_expert_reads_channels_and_its_salience_is_of_variables(tmp_path):
  context = small(tmp_path)
  expert_stage.run(context)
  data = data_lib.load(context)
  assert data.expert.values.shape[-1] == 5 and data.measured.shape == (48, 3)
  found = expert_stage.load_salience(context)
  assert found.shape == (48, 3)
  np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
  # Attention adds up over a variable's channels.
  params, model = expert_stage.load_members(context, data), settings.expert(context.config).model
  alone = salience.member_salience(params, model, data.expert, 'attention')
  want = np.stack([alone[..., [0]].sum(-1), alone[..., 1:4].sum(-1), alone[..., [4]].sum(-1)], -1)
  np.testing.assert_allclose(np.load(context.folder('expert') / 'salience_attention.npy'), want.mean(0), atol=1e-5)
  # A perturbed order of the features takes their channels along.
  rows, statistics = data.splits.test[:2], normalise.load(context.folder('prepare') / 'statistics.json')
  order = np.array([[1, 0, 2], [0, 1, 2]])
  batch = robustness.expert_input(data, statistics, rows, data.visits.values[rows], order)
  np.testing.assert_array_equal(batch.values[0][:, [0, 1, 4]], data.expert.values[rows[0]][:, [1, 0, 4]])
  assert not batch.values[0][:, 2:4].any()
  np.testing.assert_array_equal(batch.values[1], data.expert.values[rows[1]])
