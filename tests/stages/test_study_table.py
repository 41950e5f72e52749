"""What a study's table takes from folders that are finished to different degrees. Nothing is trained here."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eagrl_jax.evaluation import pseudonyms
from eagrl_jax.evaluation import study as study_lib
from eagrl_jax.stages import cells, graph, study_table
from eagrl_jax.types import EagrlError

N, RATE = 120, 2e-4
R = np.random.default_rng(0)
LABEL = {'': R.random(N) < 0.4, 'validation': R.random(60) < 0.4}


def told(label, strength):
  return 1 / (1 + np.exp(-(strength * (label - 0.5) + R.normal(size=len(label)))))


@pytest.fixture
def made(micro_config, tmp_path):
  """A study's config and folder, and how a seed's run, cells and perturbed records come to be there."""
  c = micro_config(target='study')
  c.study.update(seeds=(0, 1), arms=('grpo',), learning_rates=(RATE,))

  def done(seed, stage, config=c):
    folder = cells.run_folder(tmp_path, seed) / stage
    folder.mkdir(parents=True, exist_ok=True)
    digest = graph.stage_hashes(cells.own(config, seed))[stage]
    (folder / 'done.json').write_text(json.dumps({'hash': digest}))
    return folder

  def run(seed, eag=1.0):
    folder = done(seed, 'evaluate')
    pseudonyms.salt(folder.parent)
    probs = {'sft': told(LABEL[''], 1), 'rl': told(LABEL[''], eag), 'expert': told(LABEL[''], 2)}
    pq.write_table(pa.table({
        'arm': [arm for arm in probs for _ in range(N)], 'boolean_value': np.tile(LABEL[''], len(probs)),
        'predicted_boolean_probability': np.concatenate([*probs.values()])}), folder / 'predictions.parquet')
    (folder / 'metrics.json').write_text(json.dumps({
        'cohort': 'c', 'task': 't', 'n_test': N, 'prevalence': 0.4, 'arms': {arm: {} for arm in probs}}))

  def cell(seed, name, valid, test=1.0, label=None):
    for of in cells.asked_of(c, name):
      folder = cells.answers(tmp_path, seed, name, of)
      folder.mkdir(parents=True)
      y = LABEL[of] if label is None else label
      pq.write_table(pa.table({'boolean_value': y, 'predicted_boolean_probability': told(y, valid if of else test)}),
                     folder / 'predictions.parquet')
      (folder / 'manifest.json').write_text(json.dumps({'made_from': cells.made_from(c, tmp_path, seed, name)}))

  def robust(seed, config=c):
    folder = done(seed, 'robustness', config)
    pq.write_table(pa.concat_tables([pa.table({
        'kind': [kind] * N, 'level': [level] * N, 'arm': [arm] * N, 'boolean_value': LABEL[''],
        'predicted_boolean_probability': told(LABEL[''], 1)}) for kind, level in (('none', 0.0), ('order', 1.0))
                                     for arm in ('rl', 'expert')]), folder / 'predictions.parquet')
    return folder

  def transfer(seed):
    folder = cells.run_folder(tmp_path, seed) / 'transfer/other'
    folder.mkdir(parents=True)
    hashes = graph.stage_hashes(cells.own(c, seed))
    (folder / 'manifest.json').write_text(json.dumps({
        'made_from': {'run': {stage: hashes[stage] for stage in ('base', 'sft', 'rl', 'expert')}}}))
    (folder / 'metrics.json').write_text(json.dumps({'mapped_features': 7}))
    probs = {'sft': told(LABEL[''], 0), 'rl': told(LABEL[''], 2), 'expert': told(LABEL[''], 5)}
    pq.write_table(pa.table({
        'arm': [arm for arm in probs for _ in range(N)], 'boolean_value': np.tile(LABEL[''], len(probs)),
        'predicted_boolean_probability': np.concatenate([*probs.values()])}), folder / 'predictions.parquet')

  def gather():
    text = study_table.gather(c, tmp_path, 200)
    return json.loads((tmp_path / 'study.json').read_text()), text

  return c, {'run': run, 'cell': cell, 'robust': robust, 'transfer': transfer, 'gather': gather}


def whole(make, seed):
  make['run'](seed, eag=3.0)
  for name, valid, test in (('eag', 3, 0), ('eag@0.0002', 1, 1), ('grpo', 0.2, 0.2), ('grpo@0.0002', 3, 2)):
    make['cell'](seed, name, valid, test)


def test_no_arm_is_shown_at_a_better_rate_while_another_is_still_to_be_tried(made):
  _, make = made
  make['run'](0)
  for name in ('eag', 'eag@0.0002', 'grpo'):
    make['cell'](0, name, 1)
  out, text = make['gather']()
  assert out['rates'] == [] and 'Not chosen yet' in text
  make['cell'](0, 'grpo@0.0002', 4)
  out, text = make['gather']()
  assert len(out['rates']) == 4 and 'Not chosen yet' not in text


def test_a_seed_under_way_changes_nothing_until_it_is_whole(made):
  _, make = made
  whole(make, 0)
  before, _ = make['gather']()
  make['run'](1, eag=0.0)
  for name in ('eag', 'eag@0.0002', 'grpo'):
    make['cell'](1, name, 3)
    now, _ = make['gather']()
    assert all(now['arms'][arm]['auroc'] == before['arms'][arm]['auroc'] for arm in ('eag', 'grpo'))
    assert now['arms']['sft']['seeds'] == [0, 1] and now['arms']['eag']['seeds'] == [0]
  make['cell'](1, 'grpo@0.0002', 3)
  now, _ = make['gather']()
  assert now['arms']['eag']['seeds'] == now['arms']['grpo']['seeds'] == [0, 1]
  assert {row['arm']: row['rate'] for row in now['rates'] if row['chosen']}['grpo'] == RATE


def test_what_the_present_config_would_make_again_does_not_count(made, tmp_path):
  _, make = made
  whole(make, 0)
  whole(make, 1)
  assert {tuple(row['seeds']) for row in make['gather']()[0]['rates']} == {(0, 1)}
  manifest = cells.answers(tmp_path, 1, 'grpo', 'validation') / 'manifest.json'
  manifest.write_text(json.dumps({'made_from': json.loads(manifest.read_text())['made_from'] | {'policy': 'another'}}))
  assert {tuple(row['seeds']) for row in make['gather']()[0]['rates']} == {(0,)}
  (tmp_path / 'seed_1/evaluate/done.json').write_text(json.dumps({'hash': 'of before'}))
  assert make['gather']()[0]['arms']['sft']['seeds'] == [0]
  (tmp_path / 'seed_0' / pseudonyms.FILE).write_text(64 * 'a')  # the old one was lost
  assert make['gather']()[0]['rates'] == []


def test_answers_of_other_validation_patients_are_refused(made):
  _, make = made
  whole(make, 0)
  make['run'](1)
  make['cell'](1, 'eag', 1, label=~LABEL['validation'])
  with pytest.raises(EagrlError, match='judges other patients than another cell; move it away'):
    make['gather']()


def test_perturbed_records_count_if_they_are_those_that_the_config_asks_for(made):
  c, make = made
  c.study.learning_rates = ()
  claim = lambda out: {x['claim']: x['verdict'] for x in out['claims']}[study_lib.SHUFFLED]
  make['run'](0)
  make['run'](1)
  other = type(c)(c.to_dict())
  other.robustness.patients = 7
  make['robust'](0, other)
  assert claim(make['gather']()[0]) == 'untested'
  folder = make['robust'](0)
  make['robust'](1, other)
  out, text = make['gather']()
  assert out['perturbed']['rows'][0]['seeds'] == [0] and claim(out) != 'untested' and '## Perturbed records' in text
  (folder / 'predictions.parquet').unlink()  # of before it kept them
  assert claim(make['gather']()[0]) == 'untested'


def test_a_transfer_counts_while_the_run_is_the_one_that_was_judged(made, tmp_path):
  c, make = made
  for seed in (0, 1):
    make['run'](seed)
    make['transfer'](seed)
  verdicts = lambda out: {x['claim']: x['verdict'] for x in out['claims'] if 'elsewhere' in x['claim']}
  out, text = make['gather']()
  assert out['elsewhere']['other']['seeds'] == [0, 1] and '## Elsewhere' in text
  assert verdicts(out) == {'elsewhere it is ahead of the expert: other': 'reversed',
                           'elsewhere it is ahead of SFT: other': 'reproduced'}
  (cells.run_folder(tmp_path, 1) / 'transfer/other/predictions.parquet').unlink()  # of before it kept them
  assert make['gather']()[0]['elsewhere']['other']['seeds'] == [0]
  c.rl.learning_rate = 1e-5
  make['run'](0)  # trained and judged again
  out, text = make['gather']()
  assert set(verdicts(out).values()) == {'untested'} and 'elsewhere' not in out and '## Elsewhere' not in text


def test_without_a_current_seed_the_table_of_before_is_left_alone(made, tmp_path):
  c, make = made
  make['run'](0)
  make['gather']()
  before = (tmp_path / 'study.json').read_bytes()
  c.evaluate.samples += 1
  with pytest.raises(EagrlError, match='no seed was evaluated as the config'):
    make['gather']()
  assert (tmp_path / 'study.json').read_bytes() == before


def test_what_validation_patients_said_in_training_is_told_of_present_policies(made, tmp_path):
  c, make = made
  c.study.learning_rates, c.rl.validate_every = (), 2
  for seed in (0, 1):
    make['run'](seed)
  wrote = {}
  for seed, cell, current in ((0, 'eag', True), (1, 'eag', False), (1, 'grpo', True)):
    folder = cells.run_folder(tmp_path, seed) / ('rl' if cell == 'eag' else f'arms/{cell}/rl')
    folder.mkdir(parents=True)
    digest = graph.stage_hashes(cells.own(c, seed, cell))['rl'] if current else 'of before'
    (folder / 'done.json').write_text(json.dumps({'hash': digest}))
    wrote[cell, seed] = {'kept_step': 2, 'steps': 6, 'best_step': 2, 'by': 'auroc', 'best': .61, 'patients': 9,
                         'positive': 3}
    (folder / 'summary.json').write_text(json.dumps(wrote[cell, seed]))
  out, text = make['gather']()
  assert out['validated'] == {'eag': {'0': wrote['eag', 0]}, 'grpo': {'1': wrote['grpo', 1]}}
  assert '## Validation in training' in text and '| grpo | 1 | 2 | 2 | 0.610 |' in text
  c.rl.validate_every = 0
  for seed in (0, 1):
    make['run'](seed)
  assert 'validated' not in make['gather']()[0]
