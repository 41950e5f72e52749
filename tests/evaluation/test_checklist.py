"""What the TRIPOD+AI checklist says of a run is so, for every source and way of splitting."""

from __future__ import annotations

import re

import numpy as np
import pytest
from made_up_run import dump

from eagrl_jax.ehr import splits
from eagrl_jax.evaluation import checklist, report

NOTHING = {'config': {}, 'manifest': {}, 'environment': {}, 'result': {}, 'robustness': None, 'transfer': [],
           'split': None, 'subgroups': []}


def answers(seed=3, split=None, manifest=None, result=None, transfer=(), subgroups=(), **sections) -> dict[str, str]:
  """Item -> what the checklist says of a run with this config."""
  run = NOTHING | {'config': {'seed': seed, **sections}, 'split': split, 'manifest': manifest or {},
                   'result': result or {}, 'transfer': list(transfer), 'subgroups': subgroups}
  return {row['item']: row['answer'] for row in checklist.table(run)}


def data(source='csv', **fields) -> dict:
  """`config.data` with its defaults."""
  return {'source': source, 'task': 'mortality', 'seed': None, 'test': 0.2, 'valid_fraction': 0.125, 'protocol': '',
          'splits': '', 'window_hours': 0.0} | fields


def test_all_items_are_there_and_nothing_unknown_is_claimed(html):
  items = [item for item, _, _ in checklist.ITEMS]
  assert list(dict.fromkeys(int(re.sub(r'\D', '', item)) for item in items)) == list(range(1, 28))
  assert len(set(items)) == len(items) == 52
  known = answers(data=data('tjh', path='/somebody/private/data.xlsx'), lm={'checkpoint': '/somebody/models/small'})
  for authors in ('2', '3a', '5b', '6c', '8b', '10', '17', '18a', '19', '21', '23a', '25', '26', '27c'):
    assert known[authors] == ''
  assert 'tjh' in known['5a'] and 'sex and age' not in known['14']
  assert 'somebody' not in ' '.join(known.values()) and '(small)' in known['12c']
  assert not any(row['answer'] for row in checklist.table(NOTHING))
  part = html[html.index('id="tripod"'):]
  assert part.count('to be filled by the authors') > 15 and '1,000 train, 100 validation and 160 test patients' in part


@pytest.mark.parametrize(('source', 'hours', 'said'), [
    ('meds', 48.0, 'from the last 48 h before the prediction'),
    ('meds', 0.0, 'from the whole record before the prediction'),
    ('mimic4', 24.0, 'from the first 24 h'),
    ('tjh', 0.0, 'from the whole record')])
def test_the_horizon_of_predictors_is_that_of_the_source(source, hours, said):
  known = answers(data=data(source, window_hours=hours), manifest={'features': 7})
  assert known['9b'].startswith(f'7 features of the record, {said}, age and sex;')
  assert 'will the patient die' in known['8a'] and said not in known['8a']


def test_what_is_known_in_part_does_not_count_as_filled():
  made = {'n_test': 180, 'prevalence': 0.1, 'task': 'mortality'}
  run = {'config': {'data': data('tjh'), 'search': {'balance': True}}, 'environment': {}, 'robustness': {},
         'split': None, 'transfer': [], 'subgroups': [], 'result': made,
         'manifest': {'setting': 'adults', 'attrition': [['read', 3, 'patients']]}}
  rows = {row['item']: row for row in checklist.table(run)}
  for item in ('6a', '8a', '20a', '23a'):
    assert rows[item]['answer'] and not rows[item]['whole']
  assert rows['6b']['whole'] and 'either outcome' in rows['13']['answer']
  some = checklist.table(run | {'subgroups': ['sex']})
  assert next(row for row in some if row['item'] == '23a')['whole'] is True


SIZES = {'train': 1440, 'tuning': 180, 'held_out': 180}
PARTS = '1,440 train, 180 validation and 180 test patients; '


@pytest.mark.parametrize(('fields', 'said'), [
    ({}, PARTS + 'split by patient; stratified by outcome; seed 3.'),
    ({'seed': 0}, PARTS + 'split by patient; stratified by outcome; seed 0.'),  # `data.seed` makes it, not `seed`
    ({'protocol': '10fold:4'}, PARTS + 'split by patient; protocol 10fold:4; 10 folds stratified by outcome, fold 4 of '
     '0 to 9 tests; seed 3.'),
    ({'protocol': 'tjh_140_21_200'}, PARTS + 'split by patient; protocol tjh_140_21_200; test patients at random, the '
     'others stratified by outcome; seed 3.'),
    ({'protocol': 'mimic4_8750_1250_200'}, PARTS + 'split by patient; protocol mimic4_8750_1250_200; stratified by '
     'outcome; seed 3.'),
    ({'splits': '/somebody/splits.parquet', 'seed': 5}, PARTS + 'split as a file says.')])
def test_the_division_is_the_one_that_was_made(fields, said):
  assert answers(data=data(test=200.0, **fields), split=SIZES)['12a'] == said


def test_no_sizes_are_promised_before_there_is_a_split():
  said = answers(data=data(test=200.0))['12a']
  assert said == 'Split by patient; stratified by outcome; seed 3.'
  assert answers()['12a'] == ''


def test_sizes_are_read_from_the_split_itself(tmp_path):
  assert report._split(tmp_path / 'splits.parquet') is None
  label = np.arange(90) % 3 == 0
  ids = np.arange(90).astype(str)
  splits.save(tmp_path / 'splits.parquet', splits.by_protocol('10fold:4', label.astype(int), ids, 0), ids)
  assert report._split(tmp_path / 'splits.parquet') == {'train': 72, 'tuning': 9, 'held_out': 9}


def test_yaib_counts_stays():
  known = answers(data=data('yaib'), split=SIZES, result={'n_test': 180, 'prevalence': 0.1, 'task': 'mortality'},
                  manifest={'patients': 1800, 'positives': 180, 'name': 'yaib'})
  assert known['12a'] == '1,440 train, 180 validation and 180 test stays; split by stay; stratified by outcome; seed 3.'
  for item in ('10', '12c', '12e', '13', '21'):
    assert 'stay' in known[item] and 'patient' not in known[item]


def test_all_are_eligible_unless_a_protocol_draws():
  drawn = lambda *steps: answers(data=data(), manifest={'patients': 10200, 'name': 'm', 'attrition': steps})['10']
  assert drawn() == 'All 10,200 patients that were eligible; no calculation of the size was made.'
  assert drawn(['read', 20000, 'patients'], ['not drawn by the protocol', 1800, 'patients']) == \
      '10,200 of 12,000 eligible patients, drawn by the protocol; no calculation of the size was made.'


def test_differences_between_the_parts_are_those_of_chance_or_of_the_file():
  assert answers(data=data())['16'] == 'The same source, divided at random.'
  assert answers(data=data(splits='s.parquet'), transfer=['elsewhere'])['16'] == \
      'The same source, divided as a file says; and the cohorts elsewhere (Transfer).'


@pytest.mark.parametrize(('samples', 'temperature', 'said'), [
    (8, 1.0, 'Mean of 8 sampled answers'), (1, 1.0, 'One sampled answer'), (1, 0.0, 'One greedy answer')])
def test_how_a_prediction_is_made(samples, temperature, said):
  assert answers(evaluate={'samples': samples, 'temperature': temperature})['12g'].startswith(said + ';')


def test_what_a_prompt_shows_of_the_unmeasured_is_that_of_its_style():
  said = lambda style: answers(prompt={'style': style})['11']
  assert 'is not in the prompt' in said('compact') and 'NaN at a visit' in said('full') and 'NaN' not in said('compact')


def test_the_early_score_and_the_subgroups_are_named_where_there_are_any():
  assert 'early score' in answers(result={'early': {'n': 1}})['12e']
  assert 'early score' not in answers()['12e']
  said = lambda *kinds: [answers(subgroups=kinds, result={'n_test': 180, 'subgroups': {'rl': []}})[item]
                         for item in ('14', '23a', '23b')]
  assert said() == [
      'Nothing in training.', 'Under Results and Differences. To be filled by the authors: key groups.', '']
  assert said('sex', 'age') == ['Nothing in training; performance by sex and age is reported.',
                                'Under Results and Differences, and Subgroups.', 'By sex and age under Subgroups.']
  assert said('age')[2] == 'By age under Subgroups.'


@pytest.mark.parametrize(('shown', 'kinds'), [((), ''), (('men', 'women'), 'sex'), (
    ('men', 'women', 'age under 50', 'age 50 to 64'), 'sex and age')])
def test_a_page_whose_groups_are_all_hidden_claims_none(tmp_path, shown, kinds):
  groups = [{'name': name, 'n': 50 if name in shown else None, 'positives': 20 if name in shown else None,
             'auroc': 0.8 if name in shown else None, 'ci95': [0.7, 0.9] if name in shown else None}
            for name in ('men', 'women', 'age under 50', 'age 50 to 64')]
  dump(tmp_path / 'evaluate/metrics.json', {'n_test': 100, 'prevalence': 0.4, 'arms': {}, 'subgroups': {'rl': groups}})
  dump(tmp_path / 'config.json', {'seed': 0})
  page = report.write_report(tmp_path).read_text(encoding='utf-8')
  assert ('is reported' in page, f'performance by {kinds} is reported' in page) == (bool(kinds), bool(kinds))
  assert ('under Subgroups.' in page) == bool(kinds)


@pytest.mark.parametrize(('start', 'said'), [('sft', True), ('base', False)])
def test_a_policy_that_started_from_base_was_not_distilled(start, said):
  known = answers(lm={'checkpoint': 'tiny'}, rl={'start': start})['12c']
  assert ('distilled from a tree search, then' in known, 'without distillation' in known) == (said, not said)


@pytest.mark.parametrize(('keep', 'said'), [('last', False), ('auroc', True)])
def test_a_step_that_validation_patients_chose_is_said(keep, said):
  known = answers(lm={'checkpoint': 'tiny'}, rl={'keep': keep})['12c']
  assert ('of the last stage the best by validation patients' in known) == said
