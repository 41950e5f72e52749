"""A made-up run folder with every file that the report reads, and what tests look for in its page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eagrl_jax.evaluation import agreement, bootstrap, faithfulness, metrics, perturb

NAMES = ('lactate', 'urine output', 'creatinine', 'heart rate', 'systolic pressure', 'platelets', 'pH', 'glucose',
         'lactate dehydrogenase', 'respiratory rate', 'temperature', 'sodium')
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
          'parse_rate': 0.98 - noise[arm] / 50, 'refusal_rate': noise[arm] / 100,
          'jaccard_at_k': agreement.named_agreement(named, present, 5, expert=salience, truth=salience, n=100),
          'attention_kl': agreement.attention_agreement(
              salience + noise[arm] * rng.random(salience.shape) / 5, salience, present, n=100)}
  dump(root / 'evaluate/metrics.json', {
      'task': 'in-hospital mortality', 'n_test': n, 'prevalence': label.mean(), 'arms': arms,
      'oracle': bootstrap.bootstrap(label, risk, n=100),
      'paired': bootstrap.paired_rows(label, probs, [('rl', 'base'), ('rl', 'sft'), ('rl', 'expert')], n=100),
      'audit': [{'name': 'patients in two splits', 'value': 0.0, 'ci95': None, 'warning': ''},
                {'name': 'order of the ids', 'value': 0.99, 'ci95': [0.97, 1.0], 'warning': 'ids are ordered'}],
      'subgroups': {arm: [{'name': 'women', 'n': 80, 'positives': int(label[:80].sum()), 'auroc': 0.81,
                           'ci95': [0.7, 0.9]},
                          {'name': 'age 80 and over', 'n': None, 'positives': None, 'auroc': None, 'ci95': None}]
                    for arm in ('rl', 'expert')}})
  dump(root / 'expert/summary.json', {'top_k': 5, 'stability': {
      'occlusion': {'jaccard': 0.4321, 'chance': 0.1234, 'spearman': 0.9},
      'attention': {'jaccard': 0.2, 'chance': 0.1, 'spearman': 0.5}}})
  rows = [(f'P-{i}', i, bool(label[i]), float(prob[i]), arm, 'test') for arm, prob in probs.items() for i in range(n)]
  columns = ('subject_id', 'prediction_time', 'boolean_value', 'predicted_boolean_probability', 'arm', 'split')
  pq.write_table(pa.table(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))),
                 root / 'evaluate/predictions.parquet')
  series = {'expert': ('loss', 'val_auroc'), 'base': ('loss',), 'sft': ('loss', 'val_loss'),
            'rl': ('reward', 'loss', 'entropy', 'clip_share', 'align_loss', 'parse_rate', 'epsilon', 'grad_norm')}
  for stage, names in series.items():
    log = ''.join(json.dumps({'step': s} | {m: float(np.exp(-s / 60) + rng.normal(0, 0.05)) for m in names}) + '\n'
                  for s in range(200))
    (root / stage).mkdir(exist_ok=True)
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
  parts = ['train'] * 1000 + ['tuning'] * 100 + ['held_out'] * n
  pq.write_table(pa.table({'subject_id': [f'P-{i}' for i in range(len(parts))], 'split': parts}),
                 root / 'prepare/splits.parquet')
  dump(root / 'config.json', {'seed': 0, 'data': {'path': '/somebody/private/data.xlsx', 'window_hours': None},
                              'expert': {'salience': 'occlusion'},
                              'rl': {'learning_rate': 1e-4, 'group': 8, 'dynamic': True}})
  dump(root / 'environment.json', {'python': '3.11.2', 'jax': '0.10.2', 'devices': ['cpu:0'], 'git': 'abc1234'})
  return root


def go_further(root: Path) -> None:
  """What the robustness stage, other ways of answering and a transfer leave behind."""
  result = json.loads((root / 'evaluate/metrics.json').read_text())
  for name, seconds in (('sft', 0.5), ('rl', 1.25), ('base', 2.5)):
    result['arms'][name]['cost'] = {'seconds': seconds, 'new_tokens': 400.0, 'with_compilation': name == 'base'}
  dump(root / 'evaluate/metrics.json', result)
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
      arm: bootstrap.bootstrap(label, p, n=60) | {
          'auroc_at_home': {'point': 0.987, 'ci95': [0.9, 1.0]}, 'calibration_error': 0.123,
          'calibration': metrics.calibration(label, p)} for arm, p in whole.items()},
      'paired': bootstrap.paired_rows(label, whole, [('rl', 'expert'), ('rl', 'base')], n=60),
      'audit': [{'name': 'age alone', 'value': 0.75, 'ci95': [0.5, 0.875], 'warning': 'as good as the best model'},
                {'name': 'dropped: after discharge', 'value': 31.0, 'ci95': None, 'warning': ''}]})
  dump(root / 'transfer/elsewhere/manifest.json', {
      'made_from': {'run': {}}, 'attrition': [['read', 4321, 'rows'], ['kept', 90, 'patients']]})


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


def row_of(html: str, part: str, name: str) -> list[str]:
  """Texts of the cells of a row, by the label of its table and the start of its head."""
  table = html[html.index(f'aria-label="{part}"'):]
  row = next(r for r in re.findall(r'<tr>(.*?)</tr>', table[:table.index('</table>')], re.S)
             if ' '.join(re.sub('<[^>]*>', ' ', r).split()).startswith(name))
  return [' '.join(re.sub('<[^>]*>', ' ', cell).split()) for cell in re.findall(r'<td.*?</td>', row, re.S)]


def with_interval(found: dict) -> str:
  lo, hi = found['ci95']
  return f'{found.get("point", found["mean"]):.3f} {lo:.3f}–{hi:.3f}'
