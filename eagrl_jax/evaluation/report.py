"""One self-contained report.html from a run's folder, and the table printed at the end of a run.

The folder is the only input. A file that is not there becomes a line "not in this run"; a file
that is there and broken is an error. The page needs no network and no script.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow.parquet as pq
from markupsafe import Markup

from eagrl_jax.ehr.prompt import MARKS
from eagrl_jax.evaluation import checklist, drawing, figures, learning, marks, metrics, sections
from eagrl_jax.evaluation.files import flat, read_json, read_lines
from eagrl_jax.evaluation.formats import aligned, finite, interval, interval_text, number, percent, signed
from eagrl_jax.types import EagrlError

ARMS = {  # arms in reading order; another arm follows with no gloss
    'base': 'policy before search', 'sft': 'after trajectory distillation', 'rl': 'after attention-aligned RL',
    'expert': 'the expert model alone', 'logistic': 'logistic regression on summaries of the record',
    'boosting': 'gradient boosting on the same', 'last_value': 'a rule: the last value of one feature',
    'oracle': 'the true risk, an upper bound'}
DRAWN = ('base', 'sft', 'rl', 'expert', 'boosting', 'oracle')  # in curves; more would hide each other
STAGES = ('expert', 'base', 'sft', 'rl')
TAG = r'</?(?:Subquestion \d+|Answer \d+|Final subquestion|Important Features|Final answer)>'


def write_report(workdir: Path, share: bool = False) -> Path:
  """Writes report.html into the run folder, or report_share.html without anything about a single patient.

  Args:
    workdir: a run folder, finished or not.
    share: leave out the patient cases and the search tree's text, and shorten paths to their last part.

  Returns:
    The file written.

  Raises:
    EagrlError: the folder or a file in it cannot be read.
  """
  workdir = Path(workdir)
  if not workdir.is_dir():
    raise EagrlError(f'workdir: {workdir.name} is not a folder; give the folder of a run')
  environment = jinja2.Environment(
      loader=jinja2.PackageLoader('eagrl_jax.evaluation'), autoescape=True, undefined=jinja2.StrictUndefined,
      trim_blocks=True, lstrip_blocks=True)
  environment.filters.update(num=number, signed=signed, count=lambda n: f'{n:,}')
  page = environment.get_template('report.html.j2').render(**_context(workdir, share))
  path = workdir / ('report_share.html' if share else 'report.html')
  path.write_text(page, encoding='utf-8')
  return path


def summary_table(result: Mapping) -> str:
  """The arms of metrics.json as an aligned plain-text table for a terminal."""
  rows = [('arm', 'AUROC (95% CI)', 'AUPRC (95% CI)', 'parsed', 'Jaccard@K', 'chance', 'attention KL', 'permuted')]
  for arm in arm_rows(result):
    rows.append((arm['name'], *(interval_text(arm[m]) for m in ('auroc', 'auprc')), percent(arm['parse_rate']),
                 *(number(_mean(arm[m])) for m in ('jaccard_expert', 'jaccard_random', 'kl', 'kl_permuted'))))
  return aligned(rows)


def arm_rows(result: Mapping) -> list[dict]:
  """The arms of metrics.json in reading order, every figure an interval dict or None."""
  arms = dict(result.get('arms') or {})
  oracle = result.get('oracle')
  if oracle is not None and 'oracle' not in arms:
    arms['oracle'] = oracle if isinstance(oracle, Mapping) else {'auroc': oracle}
  rows = []
  for name in [*(a for a in ARMS if a in arms), *(a for a in arms if a not in ARMS)]:
    arm = arms[name]
    named, kl = arm.get('jaccard_at_k'), arm.get('attention_kl')
    named = named if isinstance(named, Mapping) and 'mean' not in named else {'expert': named}
    rate = interval(arm.get('parse_rate'))
    rows.append({
        'name': name, 'gloss': ARMS.get(name, ''), 'token': drawing.token(name),
        **{m: interval(arm.get(m)) for m in metrics.METRICS}, 'parse_rate': rate and rate['mean'],
        **{f'jaccard_{kind}': interval(named.get(kind)) for kind in ('expert', 'random', 'truth', 'random_truth')},
        'kl': interval(kl), 'kl_permuted': interval(kl.get('permuted')) if isinstance(kl, Mapping) else None})
  return rows


def _context(workdir: Path, share: bool) -> dict[str, Any]:
  result = read_json(workdir / 'evaluate/metrics.json') or {}
  manifest = read_json(workdir / 'prepare/manifest.json') or {}
  arms = arm_rows(result)
  notes = {kind: {a['name']: interval_text(a[kind]) for a in arms} for kind in ('auroc', 'auprc')}
  for arm in arms:
    for kind, mark in (('auroc', 0.5), ('auprc', result.get('prevalence'))):
      low = 0.4 if kind == 'auroc' else 0.0
      arm[f'{kind}_bar'] = _bar(arm[kind], arm['name'], low, mark)
  drawn = lambda found: {arm: yp for arm, yp in found.items() if arm in DRAWN or arm not in ARMS}
  headline = [a for a in arms if a['name'] in ('base', 'rl', 'expert') and a['auroc']]  # before, after, the expert
  predictions = _predictions(workdir / 'evaluate/predictions.parquet')
  logs = {stage: read_lines(workdir / stage / 'metrics.jsonl') for stage in STAGES}
  curves = [(stage, [Markup(svg) for _, svg in learning.learning_curves(rows, stage)]) for stage, rows in logs.items()]
  rewards = read_json(workdir / 'search/rewards.json')
  robustness = read_json(workdir / 'robustness/metrics.json')
  transfer = {path.parent.name: read_json(path) for path in sorted(workdir.glob('transfer/*/metrics.json'))}
  config, environment = read_json(workdir / 'config.json') or {}, read_json(workdir / 'environment.json') or {}
  known = {'config': config, 'manifest': manifest, 'environment': environment, 'result': result,
           'robustness': robustness, 'transfer': list(transfer)}
  tree = read_json(workdir / 'search/tree.json')
  cases = None if share else read_json(workdir / 'evaluate/cases.json')
  return {
      'share': share, 'result': result, 'arms': arms, 'paired': _paired(result),
      'recalibration': [{'name': arm, **metrics.calibration(*yp), 'brier': metrics.brier(*yp),
                         'log_loss': metrics.log_loss(*yp), 'ece': metrics.expected_calibration_error(*yp),
                         'min_ps': metrics.min_precision_recall(*yp),
                         'early': interval((result.get('arms') or {}).get(arm, {}).get('early_score'))}
                        for arm, yp in predictions.items()],
      'audit': result.get('audit') or [], 'subgroups': _subgroups(result.get('subgroups') or {}),
      'plots': [Markup(svg) for svg in (
          figures.roc(drawn(predictions), notes['auroc']), figures.precision_recall(drawn(predictions), notes['auprc']),
          figures.calibration(drawn(predictions)), figures.decision(drawn(predictions)))] if predictions else [],
      'curves': curves, 'rewards': Markup(figures.rewards(rewards['all'], rewards['selected'])) if rewards else None,
      'tree': _roots(tree, share) if tree else None, 'cases': [_case(c) for c in cases] if cases else None,
      'robustness': sections.robustness(robustness), 'faithfulness': sections.faithfulness(robustness),
      'members': sections.members(robustness), 'transfer': sections.transfer(transfer, ARMS),
      'costs': sections.costs(result), 'checklist': checklist.table(known) if config or result else [],
      'attrition': _attrition(manifest), 'config': flat(config, share),
      'environment': flat(environment, share), 'headline': headline,
      'cohort': flat({k: v for k, v in manifest.items() if k != 'attrition'}, share)}


def _predictions(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Test-set labels and probabilities of every arm, in reading order."""
  if not path.exists():
    return {}
  try:
    table = pq.read_table(path)
    names = ('arm', 'boolean_value', 'predicted_boolean_probability')
    arm, label, prob = (np.asarray(table[c].to_pylist()) for c in names)
    split = np.asarray(table['split'].to_pylist()) if 'split' in table.column_names else np.full(len(arm), 'test')
  except (KeyError, OSError, ValueError) as error:
    raise EagrlError('evaluate/predictions.parquet cannot be read; run the evaluate stage again') from error
  test = np.isin(split, ('test', 'held_out'))
  order = [*(a for a in ARMS if a in arm), *sorted(set(arm.tolist()) - set(ARMS))]
  return {a: (label[test & (arm == a)].astype(float), prob[test & (arm == a)].astype(float))
          for a in order if (test & (arm == a)).any()}


def _paired(result: Mapping) -> list[dict]:
  rows = []
  for row in result.get('paired') or []:
    p = row.get('p')
    rows.append({'a': row['a'], 'b': row['b'], 'metric': row['metric'].upper(),
                 'diff': interval({'mean': row['diff'], 'ci95': row.get('ci95')}),
                 'p': '–' if not finite(p) else f'{p:.3f}' if p >= 0.001 else '<0.001'})
  return rows


def _subgroups(found: Mapping) -> list[dict]:
  """A row a group: counts and, for each arm, its interval and a bar."""
  rows: dict[str, dict] = {}
  for arm, groups in found.items():
    for group in groups:
      row = rows.setdefault(group['name'], {'name': group['name'], 'n': group['n'], 'positives': group['positives'],
                                            'arms': []})
      value = None if group['auroc'] is None else interval({'point': group['auroc'], 'ci95': group['ci95']})
      row['arms'].append({'name': arm, 'token': drawing.token(arm), 'value': value,
                          'bar': _bar(value, arm, 0.4, 0.5)})
  return list(rows.values())


def _roots(tree: Mapping, share: bool) -> list[dict]:
  """Nested copies of the tree's nodes; a shared report keeps the shape and withholds the text."""
  blank = {'parent': None, 'depth': 0, 'visits': 0, 'value': None, 'reward': None, 'terminal': False,
           'on_best_path': False}
  nodes = {}
  for node in tree['nodes']:
    text = '' if share else node.get('text') or ''
    nodes[node['id']] = {**blank, **node, 'children': [], 'segments': list(_segments(text, [])), 'title': _title(text)}
  roots: list[dict] = []
  for node in nodes.values():
    parent = nodes.get(node['parent'])
    # A parent has a smaller id than its child: anything else would be a loop.
    (parent['children'] if parent and parent['id'] < node['id'] else roots).append(node)
  return roots


def _title(text: str, limit: int = 110) -> str:
  """One line that says what a step is about: a final answer with its features, else the text without tags."""
  final = re.search(r'<Important Features>(.*?)</.*<Final answer>(.*?)</', text, re.DOTALL)
  line = f'{final[2].strip()} because of {final[1].strip()}' if final else re.sub(TAG, '', text)
  line = re.sub(r'\s+', ' ', line).strip()
  return line if len(line) <= limit else line[:limit - 1].rsplit(' ', 1)[0] + ' …'


def _segments(text: str, names: Iterable[str]) -> Iterator[tuple[str, str]]:
  """Cuts an answer into ('tag' | 'name' | 'text', piece): the template escapes and marks each."""
  longest_first = sorted(filter(None, names), key=len, reverse=True)
  pattern = f'(?P<tag>{TAG})'
  if longest_first:
    pattern += rf'|(?<!\w)(?P<name>{"|".join(map(re.escape, longest_first))})(?!\w)'
  at = 0
  for match in re.finditer(pattern, text, re.IGNORECASE):
    if match.start() > at:
      yield 'text', text[at:match.start()]
    yield match.lastgroup or 'text', match.group()
    at = match.end()
  if at < len(text):
    yield 'text', text[at:]


def _case(case: Mapping) -> dict:
  features, rows = case['features'], []
  for f in features:
    seen = [v for v in f['values'] if finite(v)]
    low, high, last = f.get('ref_low'), f.get('ref_high'), seen[-1] if seen else None
    flag = '' if last is None else 'high' if high is not None and last > high else \
        'low' if low is not None and last < low else ''
    values = [v if finite(v) else None for v in f['values']]
    mark = MARKS[next(s for s, v in zip(f['signs'][::-1], values[::-1]) if v is not None)] if f.get('signs') else ''
    rows.append({'name': f['name'], 'unit': f.get('unit') or '', 'range': _range(low, high), 'flag': flag,
                 'last': '–' if last is None else f'{mark}{last:g}',
                 'spark': Markup(marks.sparkline(values, case['hours'], low, high)),
                 'weight': max(f.get('salience') or 0, f.get('attention') or 0)})
  rows.sort(key=lambda r: -r['weight'])
  names = [f['name'] for f in features]
  bars = figures.paired_bars(names, [f.get('salience') or 0 for f in features],
                             [f.get('attention') or 0 for f in features], case['label'])
  answers = [(arm, list(_segments(text or '', names))) for arm, text in case.get('answers', {}).items()]
  return {**case, 'top': rows[:10], 'rest': rows[10:], 'bars': Markup(bars), 'shown_answers': answers[::-1],
          'layers': sections.layers(case)}


def _range(low: float | None, high: float | None) -> str:
  if low is None or high is None:
    return '' if low is None and high is None else f'≥ {low:g}' if high is None else f'≤ {high:g}'
  return f'{low:g}–{high:g}'


def _attrition(manifest: Mapping) -> list[dict]:
  """Rows are (step, count, unit), as lists or as dicts."""
  rows = manifest.get('attrition') or []
  return [dict(zip(('step', 'count', 'unit'), row.values() if isinstance(row, Mapping) else row, strict=False))
          for row in rows]


def _bar(value: Mapping | None, arm: str, low: float, mark: float | None) -> Markup:
  if value is None or not finite(value['mean']):
    return Markup('')
  lo, hi = (value[k] if finite(value[k]) else value['mean'] for k in ('lo', 'hi'))
  return Markup(marks.interval_bar(value['mean'], lo, hi, arm, low, mark))


def _mean(value: Mapping | None) -> Any:
  return value and value['mean']
