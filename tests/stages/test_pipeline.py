"""The whole pipeline at the smallest size: artefacts, skipping, redoing, resuming."""

import json
import shutil

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
import transformers

from eagrl_jax.ehr import store
from eagrl_jax.evaluation import meds_predictions, provenance, pseudonyms
from eagrl_jax.lm import checkpoint_config, hf_io
from eagrl_jax.mesh import make_mesh
from eagrl_jax.stages import checks, disk, graph, pipeline, policy, settings
from eagrl_jax.stages.search import guided_label
from eagrl_jax.train.checkpoint import Checkpoints
from eagrl_jax.types import EagrlError

DONE = graph.NAMES[:graph.NAMES.index('evaluate') + 1]  # where a default run stops


def test_a_run_leaves_the_promised_folder(finished):
  metrics = json.loads((finished / 'evaluate/metrics.json').read_text())
  assert metrics['n_test'] == 24
  assert set(metrics['arms']) == {'base', 'sft', 'rl', 'expert', 'logistic', 'boosting', 'last_value', 'oracle'}
  audit = {row['name'] for row in metrics['audit']}
  assert {'order of the ids', 'age alone', 'patients in two splits'} <= audit
  early = json.loads((finished / 'expert' / 'audit.json').read_text())  # before any policy is trained
  assert {row['name'] for row in early} == audit
  assert {row['name'] for row in metrics['subgroups']['rl']} >= {'women', 'men'}
  for arm in metrics['arms'].values():
    assert len(arm['auroc']['ci95']) == 2
  predictions = pq.read_table(finished / 'evaluate/predictions.parquet').to_pydict()
  assert len(predictions['arm']) == 8 * 24 and set(predictions['split']) == {'held_out'}
  cohort = store.load(finished / 'prepare')
  assert len(set(predictions['subject_id'])) == 24 and not set(predictions['subject_id']) & set(cohort.subject_id)
  assert set(predictions['subject_id']) <= set(pseudonyms.of(cohort.subject_id, pseudonyms.salt(finished)))
  for arm in metrics['arms']:  # in the order of predictions.parquet
    file = pq.read_table(finished / 'evaluate/meds' / f'{arm}.parquet')
    assert file.schema.equals(meds_predictions.SCHEMA)
    known = [predictions['arm'].index(arm) + i for i in range(24)]
    assert file['subject_id'].to_pylist() == [int(predictions['subject_id'][i][:15], 16) for i in known]
    np.testing.assert_allclose(file['predicted_boolean_probability'],
                               [predictions['predicted_boolean_probability'][i] for i in known], rtol=1e-7)
  wrote = [json.loads(line) for line in (finished / 'evaluate/reasoning.jsonl').read_text().splitlines()]
  assert [(w['arm'], w['subject_id']) for w in wrote] == [
      (arm, predictions['subject_id'][i]) for arm in ('base', 'sft', 'rl') for i in range(24)]
  assert any(w['text'] for w in wrote) and {f for w in wrote for f in w['features']} <= set(cohort.features.names)
  page = (finished / 'report.html').read_text()
  assert '<html' in page and 'order of the ids' in page and 'Decision curve' in page and 'not shown' in page
  for stage in DONE:
    assert json.loads((finished / stage / 'done.json').read_text())['hash']
  for stage, steps in (('base', 4), ('rl', 2)):
    rows = [json.loads(line) for line in (finished / stage / 'metrics.jsonl').read_text().splitlines()]
    assert [r['step'] for r in rows] == list(range(steps))


def test_first_update_sees_the_samplers_log_probabilities(finished, micro_config, tmp_path):
  for done in graph.NAMES[:graph.NAMES.index('rl')]:
    shutil.copytree(finished / done, tmp_path / done)
  config = micro_config(target='rl')
  config.rl.dynamic_sampling = False  # or no answer counts: all earn the same
  pipeline.run(config, tmp_path)
  rows = [json.loads(line) for line in (tmp_path / 'rl/metrics.jsonl').read_text().splitlines()]
  assert 0 < max(r['sampler_gap_max'] for r in rows) < 1e-3


def test_attention_that_is_rewarded_is_read_in_the_rl_stage(finished, micro_config, tmp_path):
  for done in graph.NAMES[:graph.NAMES.index('rl')]:
    shutil.copytree(finished / done, tmp_path / done)
  config = micro_config(target='rl')
  config.rl.steps, config.rl.attention_reward = 1, 0.5
  pipeline.run(config, tmp_path)
  row = json.loads((tmp_path / 'rl/metrics.jsonl').read_text().splitlines()[-1])
  plain = json.loads((finished / 'rl/metrics.jsonl').read_text().splitlines()[0])
  assert row['jaccard'] == plain['jaccard'] and row['reward'] > plain['reward']  # the same answers, paid for more


def test_patients_too_few_for_a_step_are_told_of_before_anything_is_trained(micro_config, tmp_path):
  config = micro_config()
  config.rl.prompts, config.rl.minibatches, config.rl.micro_batch = 128, 2, 64
  with pytest.raises(EagrlError, match='rl.minibatches=2 updates of rl.micro_batch=64 prompts need more than'):
    pipeline.run(config, tmp_path)
  assert not (tmp_path / 'expert').exists()
  config = micro_config()
  config.lm.vocab_size = 200
  with pytest.raises(EagrlError, match='lm.vocab_size=200 is too small'):
    checks.check(config)


def test_a_second_run_skips_and_a_changed_section_redoes_only_what_reads_it(finished, micro_config, tmp_path):
  workdir = tmp_path / 'w'
  shutil.copytree(finished, workdir)
  times = lambda: {s: (workdir / s / 'done.json').stat().st_mtime_ns for s in DONE}
  before = times()
  ids = lambda: pq.read_table(workdir / 'evaluate/predictions.parquet')['subject_id'].to_pylist()
  pseudonymous = ids()
  config = micro_config()
  pipeline.run(config, workdir)
  assert before == times()
  config.evaluate.bootstrap = 30
  pipeline.run(config, workdir)
  assert [s for s, t in times().items() if before[s] != t] == ['evaluate']
  kept = sorted(path.name.partition('-')[0] for path in (workdir / 'superseded').iterdir())
  assert kept == ['config', 'evaluate']  # the old evaluation and what it was made with
  assert ids() == pseudonymous and provenance.outdated(workdir) == set()
  config.target, config.rl.steps = 'sft', 3
  pipeline.run(config, workdir)  # config.json is of a policy that there is not yet
  assert provenance.outdated(workdir) == {'rl', 'evaluate'}


def test_a_finished_run_is_not_made_again_by_a_command_for_finished_runs(finished, micro_config, tmp_path):
  workdir = tmp_path / 'w'
  shutil.copytree(finished, workdir)
  files = lambda: {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}
  before = files()
  config = micro_config(target='robustness')
  config.remake = False
  config.data.prevalence, config.rl.learning_rate = 0.4, 1e-5
  for call in (pipeline.run, pipeline.describe):
    with pytest.raises(EagrlError, match=r'its prepare was made with other .*\(data.prevalence, rl.learning_rate\)'):
      call(config, workdir)
  assert files() == before
  config = micro_config()
  config.remake = False
  config.evaluate.bootstrap = 30  # of the target itself
  pipeline.run(config, workdir)
  assert provenance.outdated(workdir) == set()


def test_rates_of_a_policy_from_scratch_are_doubted_of_a_checkpoint(micro_config):
  config = micro_config()
  assert checks.doubtful_rates(config) == ''
  config.lm.checkpoint = 'model'
  config.base.learning_rate, config.sft.learning_rate, config.rl.learning_rate = 1e-3, 1e-4, 5e-4
  said = checks.doubtful_rates(config)
  assert 'base.learning_rate=0.001' in said and 'rl.learning_rate=0.0005' in said and 'sft' not in said


def test_hashes_follow_config_and_inputs(micro_config):
  base, changed = micro_config(), micro_config()
  changed.expert.epochs += 1
  a, b = graph.stage_hashes(base), graph.stage_hashes(changed)
  assert [s for s in graph.NAMES if a[s] != b[s]] == ['expert', 'search', 'sft', 'rl', 'evaluate', 'robustness',
                                                               'export']


def test_a_run_of_before_a_field_came_keeps_its_hashes(micro_config):
  new, old, set_ = micro_config(), micro_config(), micro_config()
  for config in (new, old, set_):
    config.prompt.style = 'full'
  del old.evaluate['threshold'], old.prompt['may_refuse'], old.rl['resample']
  set_.evaluate.threshold, set_.prompt.may_refuse = 0.3, False
  more = micro_config()
  more.rl.resample = 1
  a, b, c = (graph.stage_hashes(config) for config in (new, old, set_))
  assert a == b and a['expert'] == c['expert']
  assert a['evaluate'] != c['evaluate'] and a['base'] != c['base']
  first, filled = graph.stage_hashes(micro_config()), graph.stage_hashes(more)
  assert first['sft'] == filled['sft'] and first['rl'] != filled['rl']
  assert settings.prompt(old) == settings.prompt(new) != settings.prompt(set_)


def test_where_an_engine_runs_is_no_reason_to_train_again(micro_config):
  configs = [micro_config() for _ in range(3)]
  for config, where in zip(configs, ('own', 'http://a:1/v1', 'http://b:2/v1')):
    config.rl.rollouts = where
  configs[2].rl.update(rollouts_timeout=5.0, rollouts_model='another name of it')
  own, a, b = (graph.stage_hashes(c)['rl'] for c in configs)
  assert own != a == b


def test_how_often_a_stage_saves_is_no_reason_to_begin_anew(micro_config):
  often, seldom = micro_config(), micro_config()
  for stage in ('expert', 'base', 'sft', 'rl'):
    seldom[stage].checkpoint_every += 7
  assert graph.stage_hashes(often) == graph.stage_hashes(seldom)


def test_the_default_values_are_those_that_hashes_were_made_with(published_config):
  config = published_config()
  for section, fields in graph.SAME.items():
    assert {field: config[section][field] for field in fields} == fields


class Killed(Exception):
  pass


@pytest.mark.parametrize('stage', ['expert', 'base', 'sft', 'rl'])
def test_resuming_gives_the_same_result(stage, finished, micro_config, tmp_path, monkeypatch):
  """Interrupted after its first checkpoint and run again == never interrupted, bit for bit."""
  config = micro_config(target=stage)
  workdir = tmp_path / 'w'
  for done in graph.NAMES[:graph.NAMES.index(stage)]:
    shutil.copytree(finished / done, workdir / done)
  save = Checkpoints.save

  def save_and_die(self, *args):
    save(self, *args)
    raise Killed

  with monkeypatch.context() as m:
    m.setattr(Checkpoints, 'save', save_and_die)
    with pytest.raises(Killed):
      pipeline.run(config, workdir)
  assert not (workdir / stage / 'done.json').exists()
  pipeline.run(config, workdir)
  mesh = make_mesh()
  read = lambda w: np.load(w / 'prob.npy') if stage == 'expert' else policy.load(w, mesh).params
  one, two = (read(w / stage) for w in (finished, workdir))
  assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two)))
  assert (finished / stage / 'metrics.jsonl').read_text() == (workdir / stage / 'metrics.jsonl').read_text()


def test_results_of_an_attempt_cut_off_at_its_end_are_written_anew(finished, micro_config, tmp_path):
  """Killed after the weights were saved and before the stage was marked done."""
  workdir = tmp_path / 'w'
  for stage in ('prepare', 'base'):
    shutil.copytree(finished / stage, workdir / stage)
  (workdir / 'base' / 'done.json').unlink()
  config = micro_config(target='base')
  shutil.copytree(finished / 'expert', workdir / 'expert')
  pipeline.run(config, workdir)
  assert (workdir / 'base' / 'done.json').exists()
  one, two = (policy.load(w / 'base', make_mesh()).params for w in (finished, workdir))
  assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two)))
  aside = [p for p in (workdir / 'superseded').iterdir() if p.name.startswith('base-')]
  assert len(aside) == 1 and (aside[0] / 'policy').is_dir()


def test_export_is_a_hugging_face_directory_of_the_same_weights(finished, micro_config, tmp_path):
  workdir = tmp_path / 'w'
  for stage in DONE:
    shutil.copytree(finished / stage, workdir / stage)
  pipeline.run(micro_config(target='export'), workdir)
  folder = workdir / 'export' / 'rl'
  trained = policy.load(workdir / 'rl', make_mesh())
  params, config, tokenizer = hf_io.load_hf(folder)
  jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(trained.params))
  assert config == checkpoint_config.bounded(trained.config) and config.max_positions == 32_768
  assert tokenizer.encode('lactate 3.1') == trained.tokenizer.encode('lactate 3.1')
  loaded = transformers.AutoConfig.from_pretrained(folder)
  assert loaded.model_type == 'qwen3' and loaded.eos_token_id == tokenizer.eos_id
  assert 'AUROC' in (folder / 'README.md').read_text()


def test_a_second_run_in_one_folder_is_refused(micro_config, tmp_path):
  with disk.exclusive(tmp_path), pytest.raises(EagrlError, match='in use by another run'):
    pipeline.run(micro_config(target='prepare'), tmp_path)
  pipeline.run(micro_config(target='prepare'), tmp_path)


def test_an_unknown_stage_is_refused(micro_config):
  config = micro_config()
  config.target = 'rll'
  with pytest.raises(EagrlError, match='target'):
    graph.selected(config)


@pytest.mark.parametrize(('weight', 'expected'), [(0.0, [0, 1]), (1.0, [0.2, 0.6]), (0.5, [0.1, 0.8])])
def test_the_searchs_goal_mixes_outcome_and_expert(weight, expected):
  np.testing.assert_allclose(guided_label(np.array([0, 1]), np.array([0.2, 0.6]), weight), expected, atol=1e-6)
