"""What the sections of the report show: each figure beside its control, and nothing where there is none."""

from __future__ import annotations

import json
import re

from made_up_run import Page, dump, fake_run, row_of, with_interval

from eagrl_jax.evaluation import bootstrap, patients, report


def test_agreement_stands_beside_chance_and_the_experts_own(run, html, tmp_path):
  arm = json.loads((run / 'evaluate/metrics.json').read_text())['arms']['rl']
  named, kl = arm['jaccard_at_k'], arm['attention_kl']
  assert row_of(html, 'Agreement with the expert', 'rl') == [
      *(with_interval(named[kind]) for kind in ('expert', 'random', 'truth', 'random_truth')),
      with_interval(kl), with_interval(kl['permuted'])]
  members = json.loads((run / 'robustness/metrics.json').read_text())['member_agreement']
  assert row_of(html, 'Agreement with the expert', 'another expert')[:2] == [
      with_interval(members['jaccard']), with_interval(members['random'])]
  assert 'top 5 features (occlusion, test patients)' in html
  # Without the robustness stage it is what the expert's own stage found.
  fake_run(tmp_path, n=40)
  page = report.write_report(tmp_path).read_text(encoding='utf-8')
  assert row_of(page, 'Agreement with the expert', 'another expert') == ['0.432', '0.123', '–', '–', '–', '–']
  assert 'top 5 features (occlusion, validation patients)' in page
  dump(tmp_path / 'expert/summary.json', {'top_k': 5, 'stability': {'occlusion': {
      'jaccard': float('nan'), 'chance': float('nan'), 'spearman': float('nan')}}})  # a single member
  assert 'another expert' not in report.write_report(tmp_path).read_text(encoding='utf-8')


def test_no_columns_of_a_truth_that_nobody_knows(tmp_path):
  fake_run(tmp_path, n=40)
  result = json.loads((tmp_path / 'evaluate/metrics.json').read_text())
  for arm in result['arms'].values():
    for key in ('truth', 'random_truth'):
      arm.get('jaccard_at_k', {}).pop(key, None)
  dump(tmp_path / 'evaluate/metrics.json', result)
  page = report.write_report(tmp_path).read_text(encoding='utf-8')
  assert 'Jaccard@K, truth' not in page and len(row_of(page, 'Agreement with the expert', 'rl')) == 4
  assert len(row_of(page, 'Agreement with the expert', 'another expert')) == 4


def test_refusals_stand_beside_parsed_answers(html):
  assert row_of(html, 'Results of every arm', 'base')[-1] == '92.0 % 3.0 % refused'
  assert row_of(html, 'Results of every arm', 'expert')[-1] == '–'


def test_audit_and_subgroups_are_shown_with_their_warnings(html):
  text = ' '.join(' '.join(Page(html).text).split())
  assert 'order of the ids 0.990 0.970–1.000 ids are ordered' in text
  assert re.search(r'women 80 \d+ with outcome 0.810 0.700–0.900', text) and 'age 80 and over not shown' in text


def test_a_group_that_would_give_a_hidden_one_away_is_hidden_too(tmp_path):
  """Of a metrics.json from before that rule: 188 men with 78 events of 200 patients with 82 leave 12 women with 4."""
  group = lambda name, n, positives: {'name': name, 'n': n, 'positives': positives, 'auroc': n and 0.8125,
                                      'ci95': n and [0.7, 0.9]}
  groups = [group('women', None, None), group('men', 188, 78), group('age under 50', 110, 35),
            group('age 50 to 64', 90, 47)]
  dump(tmp_path / 'evaluate/metrics.json', {'task': 'mortality', 'n_test': 200, 'prevalence': 82 / 200, 'arms': {},
                                            'subgroups': {'rl': groups, 'expert': groups}})
  for share in (False, True):
    html = report.write_report(tmp_path, share=share).read_text(encoding='utf-8')
    rows = dict(re.findall(r'<tr><th scope="row">(women|men|age .*?)</th>(.*?)</tr>', html))
    assert len(rows) == 4 and '35 with outcome' in rows['age under 50'] and rows['age 50 to 64'].count('0.812') == 2
    for name in ('women', 'men'):
      assert 'not shown' in rows[name] and not re.search('188|78|0.8', re.sub('<[^>]*>', ' ', rows[name]))
      assert '<svg' not in rows[name]


def test_the_early_score_is_a_column_where_there_is_one(tmp_path, html):
  assert 'early score' not in html and '>ES<' not in html
  folder = fake_run(tmp_path)
  metrics = json.loads((folder / 'evaluate/metrics.json').read_text())
  metrics['early'] = {'tau_hours': 97.4, 'threshold': 0.4, 'n': 151}
  for i, name in enumerate(('base', 'sft', 'rl')):  # the expert's is undefined
    metrics['arms'][name]['early_score'] = {'point': -0.125 + i, 'ci95': [-0.25 + i, 0.0625 + i]}
  dump(folder / 'evaluate/metrics.json', metrics)
  page = report.write_report(folder).read_text(encoding='utf-8')
  assert page.count('>ES<') == 1 and '151 patients whose stay is known' in page
  assert 'threshold of 0.40 with τ, half a usual stay, 97 h' in page
  assert '−0.125 <span class="ci">−0.250 to 0.062</span>' in page and '1.875 <span class="ci">1.750–2.062' in page


def test_robustness_shows_the_change_of_every_arm_beside_chance(run, html):
  result = json.loads((run / 'robustness/metrics.json').read_text())
  part = html[html.index('id="robustness"'):html.index('id="faithfulness"')]
  change = result['conditions'][3]['arms']['expert']['change']['auroc']
  assert change['diff'] < -0.01
  lo, hi = (f'{x:.3f}'.replace('-', '−') for x in change['ci95'])
  assert f'−{-change["diff"]:.3f} <span class="ci">{lo} to {hi}</span>' in part
  text = ' '.join(re.sub('<[^>]*>', ' ', part).split())
  table = text[text.rindex('Unchanged'):]
  assert 0 < table.index('other random draws') < table.index('Features in another order')
  assert '100 %' in text and '0.25 SD' in text and 'Prompt in other words' in text and '31 values out of range' in text
  assert part.count('<svg class="figure"') == 4 and 'expert' in part


def test_faithfulness_stands_beside_its_control(run, html):
  result = json.loads((run / 'robustness/metrics.json').read_text())
  part = html[html.index('id="faithfulness"'):html.index('id="transfer"')]
  own = result['faithfulness']['rl']['own']
  shown = lambda found: f'{found["mean"]:+.3f}'.replace('-', '−')
  for measure in ('comprehensiveness', 'sufficiency'):
    pair = f'{shown(own[measure])} .*?</td><td class="n">{shown(own["over_random"][measure])} '
    assert re.search(pair.replace('+', r'\+'), part[part.index('the features it named'):part.index('as many random')])


def test_transfer_and_costs_are_tables(html):
  text = ' '.join(' '.join(Page(html).text).split())
  assert 'elsewhere 90 patients of another cohort' in text and '(synthetic). 2 of the 3 features of the run' in text
  assert '0.987 0.900–1.000' in text and 'AUROC at home' in text
  ways = text[text.index('Ways of answering What'):]
  assert ways.index('0.500') < ways.index('1.250') < ways.index('2.500 with compilation')


def test_transfer_shows_calibration_and_paired_differences(run, html):
  result = json.loads((run / 'transfer/elsewhere/metrics.json').read_text())
  arm = result['arms']['rl']
  assert row_of(html, 'Calibration on elsewhere', 'rl') == [
      with_interval(arm['brier']), with_interval(arm['log_loss']), f'{arm["calibration"]["slope"]:.2f}',
      f'{arm["calibration"]["intercept"]:.2f}'.replace('-', '−'), '0.123']
  said = {'auroc': 'AUROC', 'auprc': 'AUPRC', 'log_loss': 'log loss'}
  for row in result['paired']:
    cells = row_of(html, 'Paired differences on elsewhere', f'{row["a"]} − {row["b"]} {said[row["metric"]]}')
    assert cells[0] == f'{row["diff"]:+.3f}'.replace('-', '−')
    assert cells[1] == ' to '.join(f'{x:.3f}'.replace('-', '−') for x in row['ci95']) and cells[2]


def test_transfer_shows_the_audit_and_the_attrition_of_the_other_cohort(html):
  assert row_of(html, 'Leakage audit of elsewhere', 'age alone') == ['0.750 0.500–0.875', 'as good as the best model']
  assert row_of(html, 'Leakage audit of elsewhere', 'dropped') == ['31', '–']
  assert row_of(html, 'Attrition of elsewhere', 'read')[1:] == ['4,321', 'rows']


def test_transfer_without_the_recalibration_has_no_empty_columns(tmp_path):
  arm = bootstrap.bootstrap([0, 1, 1], [0.1, 0.2, 0.3], 9)
  dump(tmp_path / 'transfer/elsewhere/metrics.json', {'arms': {'rl': arm}})
  page = report.write_report(tmp_path).read_text(encoding='utf-8')
  assert len(row_of(page, 'Calibration on elsewhere', 'rl')) == 3 and 'Paired differences on' not in page
  assert 'Leakage audit of' not in page and 'Attrition of' not in page


def test_attention_by_layer_stands_beside_the_expert_and_in_the_patients_part_only(run, html):
  assert html.count('class="heat"') == 3 and 'each of its 3 layers' in html
  case = json.loads((run / 'evaluate/cases.json').read_text())[0]
  total = sum(f['salience'] for f in case['features'])
  first = max(case['features'], key=lambda f: max(f['salience'] / total, *f['layers']))
  assert row_of(html, 'Attention by layer, case 1', first['name']) == [
      f'{100 * x:.0f}' for x in (first['salience'] / total, *first['layers'])]
  table = patients.layers(case)
  assert max(c['weight'] for row in table['rows'] for c in row['cells']) == 1 and table['count'] == 3
  assert 'class="heat"' not in report.write_report(run, share=True).read_text(encoding='utf-8')


def test_the_last_value_of_a_patient_is_shown_as_the_limit_that_it_is():
  feature = {'name': 'CRP', 'values': [3.0, 5.0, None], 'unit': 'mg/L', 'salience': 0.5, 'attention': 0.5}
  case = lambda **more: {'label': 'case 1', 'hours': [0, 24, 48], 'features': [feature | more]}
  last = lambda *signs: patients.case(case(signs=list(signs)) if signs else case())['top'][0]['last']
  assert [last(), last(0, -1, 0), last(0, 1, 0), last(1, 0, 0)] == ['5', '<5', '>5', '5']


def test_named_features_are_marked_and_the_longest_name_wins():
  pieces = list(patients.segments('<Answer 1> Lactate dehydrogenase, lactate; prolactate </Answer 1>',
                                  ['lactate', 'lactate dehydrogenase']))
  assert pieces == [('tag', '<Answer 1>'), ('text', ' '), ('name', 'Lactate dehydrogenase'), ('text', ', '),
                    ('name', 'lactate'), ('text', '; prolactate '), ('tag', '</Answer 1>')]
  assert list(patients.segments('x < 3', [])) == [('text', 'x < 3')]


def test_looped_tree_ends():
  nodes = [{'id': 0, 'parent': 1}, {'id': 1, 'parent': 0}, {'id': 2, 'parent': 2}]
  roots = patients.roots({'nodes': nodes})
  assert [r['id'] for r in roots] == [0, 2] and [c['id'] for c in roots[0]['children']] == [1]


def test_the_policy_that_was_kept_is_named_where_validation_patients_were_asked(run, html, tmp_path):
  assert 'steps is kept' not in html
  fake_run(tmp_path, n=40)
  summary = {'kept_step': 6, 'steps': 24, 'best_step': 6, 'by': 'auroc', 'best': 0.71234, 'patients': 200,
             'positive': 31}
  asked = '0.712 on 200 validation patients, 31 of them positive'
  for last, said in ((6, f'after 6 of 24 steps is kept: the best by AUROC {asked}.'),
                     (24, f'after 24 of 24 steps is kept: the last; the best, AUROC {asked}, was that after 6.')):
    dump(tmp_path / 'rl/summary.json', summary | {'kept_step': last})
    page = report.write_report(tmp_path).read_text(encoding='utf-8')
    assert said in page[page.index('id="learning"'):page.index('id="search"')]
