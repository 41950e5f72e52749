"""The robustness stage on the finished tiny run."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from eagrl_jax.ehr import normalise
from eagrl_jax.ehr.prompt import PromptConfig, render
from eagrl_jax.ehr.tasks import KNOWN
from eagrl_jax.evaluation import perturb, pseudonyms
from eagrl_jax.mesh import make_mesh
from eagrl_jax.rl.reading import read_attention
from eagrl_jax.stages import cases, checks, graph, pipeline, policy, robustness
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages import expert as expert_stage
from eagrl_jax.stages import settings as settings_lib
from eagrl_jax.stages.context import Context
from eagrl_jax.stages.encode import pad_answers, parse_rollout
from eagrl_jax.types import EagrlError, Rollout

BEFORE = graph.NAMES[:graph.NAMES.index('robustness')]


def settings(config):
  config.target = 'robustness'
  config.robustness.samples = 2
  config.robustness.levels.update(order=(1.0,), noise=(1.0,), drop=(0.4,), units=(0.5,))
  return config


@pytest.fixture(scope='module')
def ran(finished, micro_config, tmp_path_factory):
  """A copy of the run with the stage done; the prompt shapes that the sampler was given."""
  workdir = tmp_path_factory.mktemp('robustness') / 'w'
  for name in BEFORE:
    shutil.copytree(finished / name, workdir / name)
  shapes, sample = set(), robustness.sample
  with pytest.MonkeyPatch.context() as patch:
    def record(policy, prompt, *rest):
      shapes.add(prompt.tokens.shape)
      return sample(policy, prompt, *rest)
    patch.setattr(robustness, 'sample', record)
    pipeline.run(settings(micro_config()), workdir)
  return workdir, shapes


@pytest.fixture(scope='module')
def result(ran):
  return json.loads((ran[0] / 'robustness/metrics.json').read_text())


def test_every_condition_has_every_arm_with_intervals_and_the_paired_change(result):
  kinds = [row['kind'] for row in result['conditions']]
  assert kinds == ['sampling', 'order', 'noise', 'drop', 'units', 'wording'] and result['n'] == 24
  for row in result['conditions']:
    assert set(row['arms']) == {'base', 'sft', 'rl', 'expert'}
    for name, arm in row['arms'].items():
      for metric in ('auroc', 'auprc'):
        assert len(arm[metric]['ci95']) == len(arm['change'][metric]['ci95']) == 2
        gap = arm[metric]['point'] - result['unchanged'][name][metric]['point']
        assert arm['change'][metric]['diff'] == pytest.approx(gap)


def test_every_answer_is_kept_and_gives_the_scores_again(result, ran):
  table = pq.read_table(ran[0] / 'robustness/predictions.parquet').to_pandas()
  assert len(table) == 7 * 4 * 24 and table.subject_id.nunique() == 24
  for row in result['conditions']:
    for arm, scores in row['arms'].items():
      mine = table[(table.kind == row['kind']) & (table.level == row['level']) & (table.arm == arm)]
      point = roc_auc_score(mine.boolean_value, mine.predicted_boolean_probability)
      assert scores['auroc']['point'] == pytest.approx(point) and mine.parsed.mean() == scores['parse_rate']


def test_a_stage_that_was_cut_off_goes_on_with_the_next_batch(ran, micro_config, tmp_path, monkeypatch):
  """13 conditions and sets a policy, of two batches each: cut off in the second one's last set."""
  class Killed(Exception):
    pass

  workdir, asked, sample = tmp_path / 'w', [], robustness.sample

  def count(*args):
    asked.append(1)
    if len(asked) == 51:
      raise Killed
    return sample(*args)

  for name in BEFORE:
    shutil.copytree(ran[0] / name, workdir / name)
  shutil.copy(ran[0] / pseudonyms.FILE, workdir)
  monkeypatch.setattr(robustness, 'sample', count)
  with pytest.raises(Killed):
    pipeline.run(settings(micro_config()), workdir)
  pipeline.run(settings(micro_config()), workdir)
  assert len(asked) == 51 + 3 * 13 * 2 - 50
  for name in ('metrics.json', 'predictions.parquet'):
    assert (workdir / 'robustness' / name).read_bytes() == (ran[0] / 'robustness' / name).read_bytes()
  assert not (workdir / 'robustness/parts').exists()


def test_patients_are_named_by_the_runs_pseudonyms(ran):
  workdir = ran[0]
  split = data_lib.splits.load(workdir / 'prepare/splits.parquet', data_lib.store.load(workdir / 'prepare').subject_id)
  ids = data_lib.store.load(workdir / 'prepare').subject_id[split.test]
  told = pq.read_table(workdir / 'robustness/predictions.parquet')['subject_id'].to_pylist()
  assert told[:24] == pseudonyms.of(ids, pseudonyms.salt(workdir))


def test_seeds_of_a_study_judge_the_patients_of_its_cohort(ran, micro_config, monkeypatch):
  chosen = []
  monkeypatch.setattr(robustness.perturb, 'conditions', lambda kinds, levels, values, rows, *rest: chosen.append(rows))
  monkeypatch.setattr(robustness, 'policy_answers', lambda *args: (None, None))
  monkeypatch.setattr(robustness, 'write', lambda *args: None)
  for seed, of_data in ((0, None), (1, 0), (1, None)):
    c = settings(micro_config())
    c.seed, c.data.seed, c.robustness.patients = seed, of_data, 12
    mesh = make_mesh(**c.mesh.to_dict())
    robustness.run(Context(c, ran[0], mesh))
  first, same, other = (rows.tolist() for rows in chosen)
  assert first == same != other


def test_patients_of_one_outcome_are_refused_before_any_answer(ran, micro_config, monkeypatch):
  monkeypatch.setattr(robustness, 'policy_answers', lambda *args: pytest.fail('a policy was asked'))
  c = settings(micro_config())
  c.robustness.patients = 1
  with pytest.raises(EagrlError, match=r'^robustness\.patients=1: .* only one class: all 1 patients have outcome \d;'):
    robustness.run(Context(c, ran[0], make_mesh(**c.mesh.to_dict())))


def test_all_levels_and_sets_go_through_the_sampler_in_one_shape(ran):
  assert len(ran[1]) == 1


def test_expert_feels_the_records_and_not_the_words(result, ran):
  by_kind = {row['kind']: row['arms']['expert'] for row in result['conditions']}
  for kind in ('sampling', 'wording'):
    assert by_kind[kind]['change']['auroc']['diff'] == 0
  assert any(by_kind[kind]['auroc']['point'] != result['unchanged']['expert']['auroc']['point']
             for kind in ('order', 'noise', 'drop', 'units'))
  prob = expert_stage.load_prob(Context(None, ran[0], None))
  rows = np.sort(data_lib.splits.load(ran[0] / 'prepare/splits.parquet',
                                      data_lib.store.load(ran[0] / 'prepare').subject_id).test)
  label = data_lib.store.load(ran[0] / 'prepare').label[rows]
  from sklearn.metrics import roc_auc_score
  assert result['unchanged']['expert']['auroc']['point'] == pytest.approx(roc_auc_score(label, prob[rows]))


def test_faithfulness_has_its_controls(result):
  for arm in ('base', 'sft', 'rl'):
    assert set(result['faithfulness'][arm]) == {'own', 'random', 'expert'}
  expert = result['faithfulness']['expert']
  assert set(expert) == {'own', 'random'} and expert['own']['size']['mean'] == expert['random']['size']['mean'] == 5
  assert len(expert['own']['over_random']['comprehensiveness']['ci95']) == 2
  assert result['member_agreement']['pairs'] == 1 and result['member_agreement']['random']['mean'] < 1


def test_moved_features_meet_the_experts_wrong_channels_and_stay_themselves_in_the_prompt(finished, micro_config):
  context = Context(micro_config(), finished, make_mesh())
  data = data_lib.load(context)
  rows = data.splits.test[:3]
  order = perturb.order(rows, len(data.cohort.features), 1.0, 0)
  statistics = normalise.load(finished / 'prepare/statistics.json')
  plain, moved = (robustness.expert_input(data, statistics, rows, data.visits.values[rows], o) for o in (None, order))
  np.testing.assert_array_equal(plain.values, data.expert.values[rows])
  for i in range(3):
    np.testing.assert_array_equal(moved.values[i], plain.values[i][:, order[i]])
    np.testing.assert_array_equal(moved.observed[i], plain.observed[i][:, order[i]])
  encoder = data_lib.encoder(context, data, policy.tokenizer(finished / 'rl'))
  values = data.visits.values[rows]
  one, two = (robustness.encode(encoder, rows, perturb.Condition('x', 0, values, order=o)) for o in (None, order))
  text = [[sorted(encoder.tokenizer.decode(ids).split('\n')) for ids, _ in prompts] for prompts in (one, two)]
  assert text[0] == text[1] and [ids for ids, _ in one] != [ids for ids, _ in two]
  worded = robustness.encode(encoder, rows, perturb.Condition('x', 1, values, wording='rephrased'))
  for (ids, spans), (same_ids, same_spans) in zip(worded, one):
    assert ids != same_ids and sorted(set(spans)) == sorted(set(same_spans))


def test_patients_are_a_repeatable_part_of_the_test_split():
  test = np.arange(50, 90)
  some = robustness.chosen_rows(test, 10, 0)
  assert len(some) == 10 and set(some) < set(test) and (some == robustness.chosen_rows(test, 10, 0)).all()
  assert (np.diff(some) > 0).all() and (some != test[:10]).any()
  np.testing.assert_array_equal(robustness.chosen_rows(test, 0, 0), test)


def test_a_fresh_run_is_evaluated_first(micro_config):
  assert [s.name for s in graph.selected(micro_config(target='robustness'))][-2:] == ['evaluate', 'robustness']


@pytest.mark.parametrize(('field', 'value'), [('kinds', ('shuffle',)), ('patients', -1), ('samples', 0)])
def test_bad_settings_name_the_field(micro_config, field, value):
  config = micro_config()
  config.robustness[field] = value
  with pytest.raises(EagrlError, match=f'robustness.{field}'):
    checks.check_robustness(config)
  checks.check_robustness(micro_config())


@pytest.mark.parametrize('style', ['full', 'compact'])
@pytest.mark.parametrize('task', list(KNOWN.values()))
def test_rephrased_prompt_keeps_the_record_and_the_tags_and_changes_the_words(finished, style, task):
  cohort = data_lib.store.load(finished / 'prepare')
  values = np.full((2, len(cohort.features)), np.nan, np.float32)
  values[:, :4] = 1.5
  one, two = (render(cohort.features, values, np.array([0.0, 24.0]), 61.0, 1, setting='adults',
                     config=PromptConfig(task, style, wording=wording)) for wording in ('standard', 'rephrased'))
  cut = lambda prompt: [prompt.text[a:b] for _, a, b in prompt.spans]
  assert cut(one) == cut(two) and len(cut(one)) == 4
  rest = [set(prompt.text.split('\n')) - set(cut(prompt)) - {''} for prompt in (one, two)]
  same = rest[0] & rest[1]
  assert not any(line for line in same if not line.startswith('<Important Features>'))
  tags = ('<Answer 1>', '<Final answer>', '<Important Features>')
  assert [t in one.text for t in tags] == [t in two.text for t in tags]
  assert '61 years' in two.text and '2 visits' in two.text
  with pytest.raises(EagrlError, match='prompt.wording'):
    PromptConfig(wording='poem')


def test_attention_by_layer_is_what_the_update_would_read_of_that_layer_alone(finished, micro_config):
  config = micro_config()
  context = Context(config, finished, make_mesh())
  data = data_lib.load(context)
  trained = policy.load(finished / 'rl', context.mesh)
  encoder = data_lib.encoder(context, data, trained.tokenizer)
  rows = data.splits.test[:2]
  names = data.cohort.features.names
  tokens = [trained.tokenizer.encode(f'<Important Features> {names[0]}, {names[i]} </Important Features>\n'
                                     f'<Final answer> 0.{i} </Final answer>') for i in (1, 2)]
  found = cases.layers(context, encoder, trained, rows, tokens)
  assert found.shape == (2, 2, len(names))
  np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
  config.rl.align_layers = (1,)
  written, valid = pad_answers([[t] for t in tokens], trained.tokenizer.pad_id)
  rollout = Rollout(written, valid, 0 * written, 0 * written)
  mask = parse_rollout(rollout, trained.tokenizer, data.cohort, 1).said.align_mask
  alone = read_attention(trained.config, settings_lib.update(config), len(names), trained.params, encoder.batch(rows),
                         rollout, mask)[:, 0]
  np.testing.assert_allclose(found[1], alone, rtol=1e-5)
  assert np.abs(found[0] - found[1]).max() > 1e-4
  arm = SimpleNamespace(attention=found.mean(0), text=['', ''], prob=np.array([0.2, 0.3]))
  salience = expert_stage.load_salience(context)
  shown = cases.build(data, rows, np.array([1]), {'rl': arm}, salience, found[:, [1]])
  assert len(shown) == 1
  for feature in shown[0]['features']:
    f = data.cohort.features.find(feature['name'])
    np.testing.assert_allclose(feature['layers'], found[:, 1, f], atol=5e-5)
  plain = cases.build(data, rows, np.array([1]), {'rl': arm}, salience)
  assert 'layers' not in plain[0]['features'][0] and not any('signs' in f for f in plain[0]['features'])
  signs = np.zeros(data.visits.values.shape, np.int8)
  signs[rows[1], :, data.cohort.features.find(plain[0]['features'][0]['name'])] = -1
  marked = dataclasses.replace(data, visits=dataclasses.replace(data.visits, censor=signs))
  first, *others = cases.build(marked, rows, np.array([1]), {'rl': arm}, salience)[0]['features']
  assert first['signs'] == [-1] * plain[0]['n_visits'] and not any('signs' in f for f in others)
