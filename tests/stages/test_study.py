from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from eagrl_jax.ehr import splits, store
from eagrl_jax.evaluation import pseudonyms
from eagrl_jax.evaluation import study as study_lib
from eagrl_jax.rl.advantages import overlong_penalty
from eagrl_jax.stages import study, study_table
from eagrl_jax.types import EagrlError


def small(micro_config):
  c = micro_config(target='study')
  c.study.update(seeds=(0,), arms=('direct', 'grpo', 'prevalent_features'))
  return c


def test_every_cell_is_run_once_and_lands_in_one_table(micro_config, finished, tmp_path, caplog):
  c = small(micro_config)
  shutil.copytree(finished, tmp_path / 'seed_0')  # an evaluated run is the study's first seed as it stands
  (tmp_path / 'seed_0' / pseudonyms.FILE).unlink()  # even one of before there were salts
  before = (tmp_path / 'seed_0/rl/done.json').stat().st_mtime_ns
  study.run(c, tmp_path)
  assert (tmp_path / 'seed_0/rl/done.json').stat().st_mtime_ns == before
  out = json.loads((tmp_path / 'study.json').read_text())
  assert list(out['arms'])[:6] == ['base', 'direct', 'sft', 'eag', 'grpo', 'prevalent_features']
  assert {'expert', 'logistic', 'boosting', 'last_value', 'oracle'} <= set(out['arms'])
  config = {a: json.loads((tmp_path / f'seed_0/arms/{a}/config.json').read_text())['rl']
            for a in ('grpo', 'prevalent_features')}
  assert config['grpo']['c_align'] == 0 and config['grpo']['loss'] == 'sequence_mean'
  assert config['prevalent_features']['align_control'] == 'prevalence'
  cells = {a: pq.read_table(tmp_path / f'seed_0/arms/{a}/answers/{a}/predictions.parquet') for a in c.study.arms}
  assert all(t.num_rows == out['n_test'] for t in cells.values())
  assert 0 < out['arms']['direct']['auroc']['mean'] < 1
  marks = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('done.json')}
  study.run(c, tmp_path)  # nothing is left to do
  assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob('done.json')} == marks
  ids = [t['subject_id'].to_pylist() for t in cells.values()]  # the run's own pseudonyms
  cohort, at = store.load(tmp_path / 'seed_0/prepare'), tmp_path / 'seed_0/prepare/splits.parquet'
  judged = cohort.subject_id[splits.load(at, cohort.subject_id).test]
  assert ids == len(cells) * [pseudonyms.of(judged, pseudonyms.salt(tmp_path / 'seed_0'))]
  texts = {a: tmp_path / f'seed_0/arms/{a}/answers/{a}/reasoning.jsonl' for a in ('grpo', 'prevalent_features')}
  wrote = [[json.loads(line) for line in path.read_text().splitlines()] for path in texts.values()]
  assert all([w['subject_id'] for w in said] == ids[0] and any(w['text'] for w in said) for said in wrote)


def test_perturbed_records_are_judged_of_every_seed_and_answer_their_claim(micro_config, finished, tmp_path, capsys):
  c = small(micro_config)
  c.study.update(arms=(), robustness=True)
  c.robustness.update(kinds=('order',), samples=1)
  c.robustness.levels.order = (1.0,)
  shutil.copytree(finished, tmp_path / 'seed_0')
  study.run(c, tmp_path, dry_run=True)
  assert 'seed 0: eag done, robustness run' in capsys.readouterr().out
  study.run(c, tmp_path)
  out = json.loads((tmp_path / 'study.json').read_text())
  assert [row['kind'] for row in out['perturbed']['rows']] == ['none', 'sampling', 'order']
  seed = json.loads((tmp_path / 'seed_0/robustness/metrics.json').read_text())
  of = {'eag': 'rl', 'sft': 'sft', 'base': 'base', 'expert': 'expert'}
  for row, own in zip(out['perturbed']['rows'][1:], seed['conditions'], strict=True):
    for arm, scores in row['arms'].items():
      change = own['arms'][of[arm]]['change']['auroc']['diff']
      assert scores['change']['auroc']['diff'] == pytest.approx(change)
  claim = {c['claim']: c['verdict'] for c in out['claims']}[study_lib.SHUFFLED]
  assert claim != 'untested' and '## Perturbed records' in (tmp_path / 'study.md').read_text()
  kept = tmp_path / 'seed_0/robustness/predictions.parquet'
  kept.unlink()  # as a stage of before it kept them left it
  study.run(c, tmp_path)
  assert kept.exists() and json.loads((tmp_path / 'study.json').read_text())['perturbed'] == out['perturbed']


def test_every_arm_gets_the_rate_that_validation_patients_speak_for(micro_config, finished, tmp_path, capsys):
  c = small(micro_config)
  c.study.update(arms=('direct', 'grpo'), learning_rates=(1e-4,))
  shutil.copytree(finished, tmp_path / 'seed_0')
  study.run(c, tmp_path, dry_run=True)
  assert 'eag run, eag@0.0001 run, direct run, grpo run, grpo@0.0001 run' in capsys.readouterr().out
  study.run(c, tmp_path)
  rate = lambda cell: json.loads((tmp_path / f'seed_0/arms/{cell}/config.json').read_text())['rl']['learning_rate']
  assert (rate('grpo'), rate('grpo@0.0001'), rate('eag@0.0001')) == (c.rl.learning_rate, 1e-4, 1e-4)
  out = json.loads((tmp_path / 'study.json').read_text())
  assert not any('@' in arm for arm in out['arms']) and {'eag', 'grpo', 'direct'} <= set(out['arms'])
  cohort, at = store.load(tmp_path / 'seed_0/prepare'), tmp_path / 'seed_0/prepare/splits.parquet'
  known = splits.load(at, cohort.subject_id)
  assert [(r['arm'], r['rate']) for r in out['rates']] == [
      (arm, r) for arm in ('eag', 'grpo') for r in (c.rl.learning_rate, 1e-4)]
  for arm in ('eag', 'grpo'):
    rows = [r for r in out['rates'] if r['arm'] == arm]
    for row in rows:
      told = pq.read_table(tmp_path / f'seed_0/arms/{row["cell"]}/answers/validation/predictions.parquet').to_pydict()
      assert told['boolean_value'] == cohort.label[known.valid].astype(bool).tolist()
      score = roc_auc_score(told['boolean_value'], told['predicted_boolean_probability'])
      assert row['validation'] == pytest.approx(score)
    best = max(rows, key=lambda r: r['validation'])
    assert [r['chosen'] for r in rows] == [r is best for r in rows]
    assert out['arms'][arm]['auroc']['mean'] == pytest.approx(best['auroc'])
  assert '## Learning rates' in (tmp_path / 'study.md').read_text()
  marks = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*.json') if p.name in ('done.json', 'manifest.json')}
  study.run(c, tmp_path)
  assert marks == {p: p.stat().st_mtime_ns for p in marks}


def test_thinking_freely_is_another_prompt_for_the_same_policy(micro_config, finished, tmp_path):
  c = small(micro_config)
  c.study.arms = ('think',)
  mine, others = study.own(c, 0, 'think').prompt, study.own(c, 0).prompt
  assert (mine.reasoning, mine.style) == ('free', 'full')  # the compact prompt has no instructions
  assert (others.reasoning, others.style) == ('questions', c.prompt.style) and c.prompt.style == 'compact'
  shutil.copytree(finished, tmp_path / 'seed_0')
  study.run(c, tmp_path)
  row = json.loads((tmp_path / 'study.json').read_text())['arms']['think']
  assert 0 <= row['parse_rate'] <= 1 and row['brier']['mean'] > 0
  assert (tmp_path / 'seed_0/arms/think/answers/think/reasoning.jsonl').exists()


def test_an_agreement_that_a_seed_could_not_judge_is_left_out():
  shares = {'parse_rate': 0.75, 'refusal_rate': 0.25}
  seeds = [shares | {'jaccard_at_k': {'expert': {'mean': mean}}} for mean in (0.25, None)]
  assert study_table._means(seeds) == shares | {'jaccard': 0.25}
  assert study_table._means(seeds[1:]) == shares
  early = [{'early_score': {'point': point}} for point in (0.5, 0.25)]
  assert study_table._means(early) == {'early_score': 0.375}
  assert study_table._means([*early, {}]) == study_table._means([*early, {'early_score': {'point': None}}]) == {}


def test_other_seeds_keep_cohort_and_split_of_the_first(micro_config):
  c = small(micro_config)
  c.study.seeds = (3, 4)
  first, second = study.own(c, 3), study.own(c, 4)
  assert (first.seed, first.data.seed, second.seed, second.data.seed) == (3, None, 4, 3)


def test_dapo_punishes_length_beyond_what_the_others_may_write(micro_config):
  c = small(micro_config)
  dapo = study.own(c, 0, 'dapo').rl
  assert dapo.max_new - dapo.overlong_buffer == c.rl.max_new and dapo.overlong_buffer == c.rl.max_new // 4
  free = overlong_penalty(np.arange(dapo.max_new + 1), dapo.max_new, dapo.overlong_buffer)
  assert not free[:c.rl.max_new + 1].any() and free[c.rl.max_new + 1] < 0 and free[-1] == -1
  assert study.own(c, 0, 'grpo').rl.max_new == c.rl.max_new and c.rl.overlong_buffer == 0


def test_an_arm_between_grpo_and_eag_rl_has_one_part_of_the_latter(micro_config):
  c = small(micro_config)
  of = lambda arm: study.own(c, 0, arm).rl.to_dict()
  differing = lambda a, b: {name for name, value in of(a).items() if value != of(b)[name]}
  assert differing('no_attention', 'eag') == {'lam', 'c_align'} and of('no_attention')['lam'] == 1
  for arm, parts in (('grpo_dr', {'advantage'}), ('grpo_tokens', {'loss'}), ('grpo_dynamic', {'dynamic_sampling'}),
                     ('grpo_clip', {'clip_max'})):
    assert differing(arm, 'grpo') == parts and not parts & differing(arm, 'eag'), arm


def test_arms_that_weigh_the_prediction_alone_are_refused_where_nothing_is_weighed(micro_config, tmp_path):
  c = small(micro_config)
  c.reward.kind, c.study.arms = 'authors', ('no_alignment', 'no_attention', 'grpo_dr')
  with pytest.raises(EagrlError, match='take no_attention, grpo_dr out of study.arms'):
    study.run(c, tmp_path)


@pytest.mark.parametrize(('field', 'value', 'says'), [
    ('arms', ('gropo',), 'study.arms'), ('seeds', (), 'study.seeds'), ('seeds', (1, 1), 'study.seeds'),
    ('seeds', (0, -1), 'study.seeds=-1'), ('learning_rates', (1e-3, 1e-3), 'study.learning_rates'),
    ('learning_rates', (0.0,), 'study.learning_rates')])
def test_what_cannot_work_is_refused(micro_config, tmp_path, field, value, says):
  c = small(micro_config)
  c.study[field] = value
  with pytest.raises(EagrlError, match=says):
    study.run(c, tmp_path)
  assert not list(tmp_path.iterdir())
