"""The report of a made-up run folder: complete, partial, broken, shared."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eagrl_jax.evaluation import agreement, bootstrap, checklist, faithfulness, perturb, report
from eagrl_jax.types import EagrlError

NAMES = ('lactate', 'urine output', 'creatinine', 'heart rate', 'systolic pressure', 'platelets', 'pH', 'glucose',
         'lactate dehydrogenase', 'respiratory rate', 'temperature', 'sodium')
HEADINGS = ('Results', 'Paired differences', 'ROC, precision–recall, calibration and decisions', 'Subgroups',
            'Leakage audit', 'Learning curves', 'Search', 'Patients', 'Cohort', 'Config', 'Versions')
FURTHER = ('Ways of answering', 'Robustness', 'Faithfulness', 'Transfer')  # of a run that went further
WHOLE = (*HEADINGS[:5], *FURTHER, *HEADINGS[5:], 'TRIPOD+AI checklist')
ANSWER = ('<Subquestion 1> Is the lactate out of range? </Subquestion 1>\n'
          '<Answer 1> The last value is 3.8, above its range, and rising. </Answer 1>\n'
          '<Final subquestion> Now we can answer the question: will the patient die in hospital? </Final subquestion>\n'
          '<Important Features> lactate, urine output </Important Features>\n<Final answer> {p:.2f} </Final answer>')


def dump(path: Path, value) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value), encoding='utf-8')


def fake_run(root: Path, n: int = 160) -> Path:
  """A run folder with every file that the report reads."""
  rng = np.random.default_rng(0)
  risk = rng.beta(1.2, 3, n)
  label = (rng.random(n) < risk).astype(int)
  noise = {'base': 3.0, 'sft': 0.35, 'rl': 0.15, 'expert': 0.1}
  probs = {}
  for arm, s in noise.items():
    blurred = 0.35 * min(s, 1) + (1 - min(s, 1)) * risk + rng.normal(0, min(s, 0.2), n)
    probs[arm] = np.round(np.clip(blurred, 0.01, 0.99), 2)
  salience = rng.dirichlet(np.full(len(NAMES), 0.4), n)
  present = np.ones_like(salience, bool)
  arms = {}
  for arm, prob in probs.items():
    arms[arm] = bootstrap.bootstrap(label, prob, n=100)
    if arm != 'expert':
      named = [list(np.argsort(-s - noise[arm] * rng.random(len(s)))[:5]) for s in salience]
      arms[arm] |= {
          'parse_rate': 0.98 - noise[arm] / 50,
          'jaccard_at_k': agreement.named_agreement(named, present, 5, expert=salience, truth=salience, n=100),
          'attention_kl': agreement.attention_agreement(
              salience + noise[arm] * rng.random(salience.shape) / 5, salience, present, n=100)}
  dump(root / 'evaluate/metrics.json', {
      'task': 'in-hospital mortality', 'n_test': n, 'prevalence': label.mean(), 'arms': arms,
      'oracle': bootstrap.bootstrap(label, risk, n=100),
      'paired': bootstrap.paired_rows(label, probs, [('rl', 'base'), ('rl', 'sft'), ('rl', 'expert')], n=100),
      'audit': [{'name': 'patients in two splits', 'value': 0.0, 'ci95': None, 'warning': ''},
                {'name': 'order of the ids', 'value': 0.99, 'ci95': [0.97, 1.0], 'warning': 'ids are ordered'}],
      'subgroups': {arm: [{'name': 'women', 'n': 80, 'positives': 30, 'auroc': 0.81, 'ci95': [0.7, 0.9]},
                          {'name': 'age 80 and over', 'n': None, 'positives': None, 'auroc': None, 'ci95': None}]
                    for arm in ('rl', 'expert')}})
  rows = [(f'P-{i}', i, bool(label[i]), float(prob[i]), arm, 'test') for arm, prob in probs.items() for i in range(n)]
  columns = ('subject_id', 'prediction_time', 'boolean_value', 'predicted_boolean_probability', 'arm', 'split')
  pq.write_table(pa.table(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))),
                 root / 'evaluate/predictions.parquet')
  series = {'expert': ('loss', 'val_auroc'), 'base': ('loss',), 'sft': ('loss', 'val_loss'),
            'rl': ('reward', 'loss', 'entropy', 'clip_share', 'align_loss', 'parse_rate', 'epsilon', 'grad_norm')}
  for stage, names in series.items():
    log = ''.join(json.dumps({'step': s} | {m: float(np.exp(-s / 60) + rng.normal(0, 0.05)) for m in names}) + '\n'
                  for s in range(200))
    (root / stage).mkdir()
    (root / stage / 'metrics.jsonl').write_text(log + '{"step": 200, "lo', encoding='utf-8')  # killed while writing
  dump(root / 'search/rewards.json', {'all': rng.normal(-0.5, 0.5, 300).tolist(), 'selected': [0.1, 0.3, 0.2] * 20})
  step = ('<Subquestion {0}> Is the {1} out of range? </Subquestion {0}>\n'
          '<Answer {0}> The last value is 3.8. </Answer {0}>')
  nodes = [{'id': 0, 'parent': -1, 'depth': 0, 'visits': 10, 'value': 0.3, 'reward': 0.0, 'terminal': False, 'text': '',
            'on_best_path': True}]
  for i in range(1, 13):
    parent = (i - 1) // 3
    depth = nodes[parent]['depth'] + 1
    nodes.append({'id': i, 'parent': parent, 'depth': depth, 'visits': 10 // i, 'value': 0.3 - i / 50, 'reward': 0.2,
                  'terminal': depth == 3, 'text': step.format(depth, NAMES[i - 1]), 'on_best_path': i in (2, 8)})
  nodes.append({'id': 13, 'parent': 8, 'depth': 3, 'visits': 3, 'value': 0.41, 'reward': 0.41, 'terminal': True,
                'text': ANSWER.split('</Answer 1>\n')[1].format(p=0.81), 'on_best_path': True})
  dump(root / 'search/tree.json', {'nodes': nodes})
  cases = []
  for c in range(3):
    visits = 4 + 2 * c
    features = []
    for f, name in enumerate(NAMES):
      values = [None if rng.random() < 0.3 else round(float(v), 1) for v in rng.normal(10 + f, 3, visits)]
      features.append({'name': name, 'values': values, 'unit': 'mmol/L' if f % 2 else '',
                       'ref_low': 8.0 + f if f % 3 else None, 'ref_high': 12.0 + f,
                       'salience': float(salience[c, f]), 'attention': float(rng.dirichlet(np.ones(12))[f]),
                       'layers': np.random.default_rng([c, f]).dirichlet(np.ones(3)).tolist()})
    cases.append({'label': f'case {c + 1}', 'n_visits': visits, 'features': features,
                  'hours': [12.0 * v for v in range(visits)],
                  'answers': {a: ANSWER.format(p=probs[a][c]) for a in ('base', 'sft', 'rl')},
                  'probabilities': {a: float(p[c]) for a, p in probs.items()}, 'outcome': int(label[c])})
  dump(root / 'evaluate/cases.json', cases)
  dump(root / 'prepare/manifest.json', {
      'name': 'synthetic', 'n': {'train': 1000, 'val': 100, 'test': n}, 'test_ids': list(range(n)),
      'attrition': [['generated', 1300, 'patients'], ['no measurement in the window', 12, 'patients'],
                    ['outside the hard range', 1456, 'values']]})
  dump(root / 'config.json', {'seed': 0, 'data': {'path': '/somebody/private/data.xlsx', 'window_hours': None},
                              'rl': {'learning_rate': 1e-4, 'group': 8, 'dynamic': True}})
  dump(root / 'environment.json', {'python': '3.11.2', 'jax': '0.10.2', 'devices': ['cpu:0'], 'git': 'abc1234'})
  return root


def go_further(root: Path) -> None:
  """What the robustness stage, other ways of answering and a transfer leave behind."""
  metrics = json.loads((root / 'evaluate/metrics.json').read_text())
  for name, seconds in (('sft', 0.5), ('rl', 1.25), ('base', 2.5)):
    metrics['arms'][name]['cost'] = {'seconds': seconds, 'new_tokens': 400.0, 'with_compilation': name == 'base'}
  dump(root / 'evaluate/metrics.json', metrics)
  rng = np.random.default_rng(1)
  label = (rng.random(90) < 0.4).astype(int)
  skill = {'base': 0.02, 'sft': 0.5, 'rl': 0.8, 'expert': 1.0}
  draw = lambda arm, loss: np.clip(0.5 + (1 - loss) * skill[arm] * (label - 0.5) * 0.4
                                   + np.random.default_rng([len(arm), 3]).normal(0, 0.25, 90), 0, 1)
  whole = {arm: draw(arm, 0) for arm in skill}
  conditions = []
  for kind, level in (('sampling', 0), ('order', 0.2), ('order', 0.4), ('order', 1.0), ('noise', 0.25), ('noise', 1.0),
                      ('drop', 0.2), ('drop', 0.6), ('units', 0.3), ('wording', 1.0)):
    arms = {}
    for arm in skill:
      changed = draw(arm, level * (0.9 if arm == 'expert' else 0.3))
      change = bootstrap.paired_difference(label, changed, whole[arm], n=60)
      arms[arm] = bootstrap.bootstrap(label, changed, n=60) | {'change': change, 'parse_rate': 1.0}
    detail = {'features_by_spec': 2, 'features_times_ten': 4, 'values_out_of_range': 31} if kind == 'units' else {}
    conditions.append({'kind': kind, 'level': level, **detail, 'arms': arms})
  chosen = np.ones((90, 5), bool)
  sets = {kind: (chosen, whole['rl'] * f, whole['rl'] * g) for kind, f, g in (
      ('own', 0.7, 0.95), ('random', 0.9, 0.8), ('expert', 0.6, 0.97))}
  members = faithfulness.member_agreement(rng.random((3, 90, 12)), np.ones((90, 12), bool), 5, 60)
  dump(root / 'robustness/metrics.json', {
      'n': 90, 'samples': 4, 'top_k': 5, 'salience': 'occlusion', 'levels': perturb.WORDS,
      'unchanged': {arm: bootstrap.bootstrap(label, p, n=60) for arm, p in whole.items()}, 'conditions': conditions,
      'faithfulness': {'rl': faithfulness.table(whole['rl'], sets, 0.4, 60)}, 'member_agreement': members})
  dump(root / 'transfer/elsewhere/metrics.json', {
      'n_test': 90, 'trained_on': 'synthetic', 'features': {'mapped': ['a', 'b'], 'lacking': ['c']}, 'arms': {
      arm: bootstrap.bootstrap(label, p, n=60) | {'auroc_at_home': {'point': 0.987, 'ci95': [0.9, 1.0]}}
      for arm, p in whole.items()}})


class Page(HTMLParser):
  """Text, headings, and balance of a page."""

  VOID = ('meta', 'link', 'br', 'hr', 'img', 'input')

  def __init__(self, html: str):
    super().__init__()
    self.text, self.stack, self.tags, self.ids, self.links, self.headings = [], [], [], [], [], []
    self.feed(html)
    self.close()

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.tags.append(tag)
    self.ids += [attrs['id']] if 'id' in attrs else []
    self.links += [attrs[k] for k in ('href', 'src') if k in attrs]
    if tag not in self.VOID:
      self.stack.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    if tag not in self.VOID:
      self.stack.pop()

  def handle_endtag(self, tag):
    assert self.stack.pop() == tag, f'unbalanced </{tag}>'

  def handle_data(self, data):
    if self.stack and self.stack[-1] != 'style':
      self.text.append(data)
      if self.stack[-1] == 'h2':
        self.headings.append(data)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  root = fake_run(tmp_path_factory.mktemp('run'))
  go_further(root)
  return root


@pytest.fixture(scope='module')
def html(run):
  path = report.write_report(run)
  assert path == run / 'report.html'
  return path.read_text(encoding='utf-8')


def test_all_sections_and_no_junk(html):
  page = Page(html)
  assert not page.stack
  assert tuple(page.headings) == WHOLE
  text = ' '.join(page.text)
  assert not re.search(r'\b(None|nan|NaN|inf|Undefined|Markup)\b', text)
  assert 'not in this run' not in text
  assert 'test_ids' in text and '160 entries' in text and 'data.window_hours' in text and 'not set' in text


def test_figures_of_metrics_json_are_on_the_page(run, html):
  metrics = json.loads((run / 'evaluate/metrics.json').read_text())
  rl = metrics['arms']['rl']['auroc']
  assert f'{rl["point"]:.3f} <span class="ci">{rl["ci95"][0]:.3f}–{rl["ci95"][1]:.3f}</span>' in html
  assert f'rl  {rl["point"]:.3f} ({rl["ci95"][0]:.3f}–{rl["ci95"][1]:.3f})' in html  # legend of the ROC figure
  assert f'{metrics["oracle"]["auprc"]["point"]:.3f}' in html
  assert re.search(rf'rl − expert.*?{abs(metrics["paired"][4]["diff"]):.3f}', html, re.S)


def test_self_contained_without_script_and_with_unique_ids(html):
  page = Page(html)
  assert not {'script', 'link', 'img', 'iframe'} & set(page.tags)
  assert all(link.startswith('#') for link in page.links) and {link[1:] for link in page.links} <= set(page.ids)
  assert len(page.ids) == len(set(page.ids))
  assert {re.sub(r'["\s].*', '', url) for url in re.findall(r'https?://\S+', html)} == {'http://www.w3.org/2000/svg'}
  assert 'P-1' not in html  # subject ids stay in the parquet file


def test_tree_opens_the_best_path_only(html):
  tree = html[html.index('<ul class="tree">'):html.index('id="patients"')]
  assert tree.count('<details open>') == tree.count('class="star"') == 4
  assert tree.count('<details') == 14
  assert 'Is the urine output out of range?' in tree


def test_the_last_value_of_a_patient_is_shown_as_the_limit_that_it_is():
  feature = {'name': 'CRP', 'values': [3.0, 5.0, None], 'unit': 'mg/L', 'salience': 0.5, 'attention': 0.5}
  case = lambda **more: {'label': 'case 1', 'hours': [0, 24, 48], 'features': [feature | more]}
  last = lambda *signs: report._case(case(signs=list(signs)) if signs else case())['top'][0]['last']
  assert [last(), last(0, -1, 0), last(0, 1, 0), last(1, 0, 0)] == ['5', '<5', '>5', '5']


def test_named_features_are_marked_and_the_longest_name_wins():
  pieces = list(report._segments('<Answer 1> Lactate dehydrogenase, lactate; prolactate </Answer 1>',
                                 ['lactate', 'lactate dehydrogenase']))
  assert pieces == [('tag', '<Answer 1>'), ('text', ' '), ('name', 'Lactate dehydrogenase'), ('text', ', '),
                    ('name', 'lactate'), ('text', '; prolactate '), ('tag', '</Answer 1>')]
  assert list(report._segments('x < 3', [])) == [('text', 'x < 3')]


def test_shared_copy_holds_no_patient(run):
  path = report.write_report(run, share=True)
  assert path.name == 'report_share.html'
  html = path.read_text(encoding='utf-8')
  assert 'Patients' not in Page(html).headings and 'case 1' not in html
  assert 'The last value is' not in html and 'class="answer"' not in html and 'best path' in html
  assert 'somebody' not in html and 'data.xlsx' in html


def test_deterministic(run, html):
  assert report.write_report(run).read_text(encoding='utf-8') == html


def test_empty_run_says_what_is_missing(tmp_path):
  page = Page(report.write_report(tmp_path).read_text(encoding='utf-8'))
  assert tuple(page.headings) == HEADINGS
  text = ' '.join(page.text)
  for part in ('Results', 'Paired differences', 'Learning curves of rl', 'Search tree', 'Rewards of the search',
               'Patient cases', 'Attrition', 'Config', 'Versions'):
    assert f'{part}: not in this run.' in text
  with pytest.raises(EagrlError, match='workdir'):
    report.write_report(tmp_path / 'absent')


def test_one_class_run_gives_the_reason(tmp_path):
  arm = bootstrap.bootstrap([0, 0, 0], [0.1, 0.2, 0.3], n=10)
  dump(tmp_path / 'evaluate/metrics.json', {'task': 'mortality', 'n_test': 3, 'arms': {'rl': arm}})
  text = ' '.join(Page(report.write_report(tmp_path).read_text(encoding='utf-8')).text)
  assert 'only one class: all 3 patients have outcome 0' in text
  assert not re.search(r'\b(None|nan|NaN)\b', text)


@pytest.mark.parametrize('name', ['evaluate/metrics.json', 'rl/metrics.jsonl', 'evaluate/predictions.parquet'])
def test_broken_file_is_named(tmp_path, name):
  path = tmp_path / name
  path.parent.mkdir()
  path.write_text('{"a": \n{}\n')
  with pytest.raises(EagrlError, match=re.escape(name)):
    report.write_report(tmp_path)


def test_hostile_text_stays_text(tmp_path):
  evil = '<script>document.title="x"</script><img src=x onerror=alert(1)>'
  fake_run(tmp_path, n=40)
  cases = json.loads((tmp_path / 'evaluate/cases.json').read_text())
  cases[0]['answers']['rl'] = cases[0]['features'][0]['name'] = cases[0]['label'] = evil
  dump(tmp_path / 'evaluate/cases.json', cases)
  dump(tmp_path / 'search/tree.json', {'nodes': [{'id': 0, 'parent': -1, 'text': evil, 'on_best_path': True}]})
  dump(tmp_path / 'config.json', {evil: evil})
  page = Page(report.write_report(tmp_path).read_text(encoding='utf-8'))
  assert not {'script', 'img'} & set(page.tags)
  assert ''.join(page.text).count('document.title="x"') >= 4


def test_looped_tree_ends():
  nodes = [{'id': 0, 'parent': 1}, {'id': 1, 'parent': 0}, {'id': 2, 'parent': 2}]
  roots = report._roots({'nodes': nodes}, share=False)
  assert [r['id'] for r in roots] == [0, 2] and [c['id'] for c in roots[0]['children']] == [1]


def test_summary_table(run):
  table = report.summary_table(json.loads((run / 'evaluate/metrics.json').read_text())).split('\n')
  assert [line.split()[0] for line in table[2:]] == ['base', 'sft', 'rl', 'expert', 'oracle']
  assert len({len(line) for line in table}) == 1
  assert table[0].split('  ')[0] == 'arm' and 'Jaccard@K' in table[0] and 'attention KL' in table[0]
  rl = json.loads((run / 'evaluate/metrics.json').read_text())['arms']['rl']
  assert f'{rl["auroc"]["point"]:.3f} ({rl["auroc"]["ci95"][0]:.3f}–{rl["auroc"]["ci95"][1]:.3f})' in table[4]
  assert f'{rl["jaccard_at_k"]["expert"]["mean"]:.3f}' in table[4] and '97.7%' in table[4]
  assert '–' in table[5] and 'nan' not in '\n'.join(table)


def test_summary_table_reads_the_plain_schema():
  """ARCHITECTURE's schema: means without points, plain numbers for agreement."""
  table = report.summary_table({'arms': {'rl': {
      'auroc': {'mean': 0.8, 'std': 0.02, 'ci95': [0.76, 0.84]}, 'auprc': {'mean': 0.5, 'std': 0.1, 'ci95': [0.3, 0.7]},
      'parse_rate': 0.97, 'jaccard_at_k': 0.4, 'attention_kl': 0.9}}, 'oracle': 0.91})
  assert '0.800 (0.760–0.840)  0.500 (0.300–0.700)   97.0%      0.400       –         0.900         –' in table
  assert table.splitlines()[-1].split()[:2] == ['oracle', '0.910']


def test_audit_and_subgroups_are_shown_with_their_warnings(html):
  text = ' '.join(' '.join(Page(html).text).split())
  assert 'order of the ids 0.990 0.970–1.000 ids are ordered' in text
  assert 'women 80 30 with outcome 0.810 0.700–0.900' in text and 'age 80 and over too few' in text


def test_a_run_that_went_no_further_has_no_empty_sections(tmp_path):
  page = Page(report.write_report(fake_run(tmp_path, n=40)).read_text(encoding='utf-8'))
  assert tuple(page.headings) == (*HEADINGS, 'TRIPOD+AI checklist')
  assert not {'robustness', 'faithfulness', 'transfer', 'ways'} & set(page.ids)


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
  assert '−0.125 <span class="ci">−0.250–0.062</span>' in page and '1.875 <span class="ci">1.750–2.062' in page
  known = {'config': {'seed': 0}, 'manifest': {}, 'environment': {}, 'robustness': None, 'transfer': []}
  answer = lambda result: next(r['answer'] for r in checklist.table(known | {'result': result}) if r['item'] == '12e')
  assert 'early score' in answer(metrics) and 'early score' not in answer({})


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


def test_faithfulness_and_members_stand_beside_their_controls(run, html):
  result = json.loads((run / 'robustness/metrics.json').read_text())
  part = html[html.index('id="faithfulness"'):html.index('id="transfer"')]
  own = result['faithfulness']['rl']['own']
  shown = lambda found: f'{found["mean"]:+.3f}'.replace('-', '−')
  for measure in ('comprehensiveness', 'sufficiency'):
    pair = f'{shown(own[measure])} .*?</td><td class="n">{shown(own["over_random"][measure])} '
    assert re.search(pair.replace('+', r'\+'), part[part.index('the features it named'):part.index('as many random')])
  assert f'{result["member_agreement"]["jaccard"]["mean"]:.3f}' in part
  assert f'{result["member_agreement"]["random"]["mean"]:.3f}' in part


def test_transfer_and_costs_are_tables(html):
  text = ' '.join(' '.join(Page(html).text).split())
  assert 'elsewhere 90 patients of another cohort' in text and '(synthetic). 2 of the 3 features of the run' in text
  assert '0.987 0.900–1.000' in text and 'AUROC at home' in text
  ways = text[text.index('Ways of answering What'):]
  assert ways.index('0.500') < ways.index('1.250') < ways.index('2.500 with compilation')


def test_attention_by_layer_is_in_the_patients_part_only(run, html):
  assert html.count('class="heat"') == 3 and 'each of its 3 layers' in html
  assert 'class="heat"' not in report.write_report(run, share=True).read_text(encoding='utf-8')


def test_checklist_has_all_items_and_claims_nothing_unknown(run, html):
  items = [item for item, _, _ in checklist.ITEMS]
  assert list(dict.fromkeys(int(re.sub(r'\D', '', item)) for item in items)) == list(range(1, 28))
  assert len(set(items)) == len(items) == 52
  part = html[html.index('id="tripod"'):]
  data = {'source': 'tjh', 'path': '/somebody/private/data.xlsx', 'test': 200, 'splits': ''}
  policy = {'checkpoint': '/somebody/models/small'}
  answers = {row['item']: row['answer'] for row in checklist.table({
      'config': {'seed': 3, 'data': data, 'lm': policy}, 'manifest': {}, 'environment': {}, 'result': {},
      'robustness': None, 'transfer': []})}
  for authors in ('2', '3a', '5b', '6c', '8b', '10', '17', '18a', '19', '21', '23a', '25', '26', '27c'):
    assert answers[authors] == ''
  assert 'Test 200 patients' in answers['12a'] and 'seed 3' in answers['12a'] and 'tjh' in answers['5a']
  assert 'somebody' not in ' '.join(answers.values()) and '(small)' in answers['12c']
  empty = {key: {} for key in ('config', 'manifest', 'environment', 'result')} | {'robustness': None, 'transfer': []}
  assert not any(row['answer'] for row in checklist.table(empty))
  assert part.count('to be filled by the authors') > 15 and '160 test patients' in part
