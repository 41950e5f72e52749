"""One self-contained report.html from a run's folder, and the table printed at the end of a run.

The folder is the only input. A file that is not there becomes a line "not in this run", one of a stage that is
`provenance.outdated` a line that says so; a file that is there and broken is an error. The page needs no network and no
script.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from eagrl_jax.ehr.splits import kept_apart
from eagrl_jax.evaluation import (
  checklist,
  drawing,
  figures,
  learning,
  marks,
  metrics,
  patients,
  provenance,
  sections,
  study,
  subgroups,
)
from eagrl_jax.evaluation.files import flat, read_columns, read_json, read_lines
from eagrl_jax.evaluation.formats import aligned, finite, interval, interval_text, number, percent, signed
from eagrl_jax.types import EagrlError

ARMS = {  # arms in reading order; another arm follows with no gloss
    'base': 'policy before search', 'sft': 'after trajectory distillation', 'rl': 'after attention-aligned RL',
    'expert': 'the expert model alone', 'logistic': 'logistic regression on summaries of the record',
    'boosting': 'gradient boosting on the same', 'last_value': 'a rule: the last value of one feature',
    'oracle': 'the true risk, an upper bound'}
DRAWN = ('base', 'sft', 'rl', 'expert', 'boosting', 'oracle')  # in curves; more would hide each other
STAGES = ('expert', 'base', 'sft', 'rl')


def write_report(workdir: Path, share: bool = False) -> Path:
  """Writes report.html into the run folder, or report_share.html without a record, an id or a text of a single patient.

  Args:
    workdir: a run folder, finished or not.
    share: leave out the patient cases, the search tree and calibration of a few patients, and shorten paths to their
      last part. A step of its curves is still a test patient: an outcome, in the order of the probabilities.

  Returns:
    The file written.

  Raises:
    EagrlError: the folder or a file in it cannot be read.
  """
  workdir = Path(workdir).expanduser()
  if not workdir.is_dir():
    raise EagrlError(f'workdir: {workdir.name} is not a folder; give the folder of a run')
  page = render('report.html.j2', **_context(workdir, share))
  path = workdir / ('report_share.html' if share else 'report.html')
  path.write_text(page, encoding='utf-8')
  return path


def render(template: str, **values: Any) -> str:
  """A page of `templates/`; what is no Markup is escaped."""
  environment = jinja2.Environment(
      loader=jinja2.PackageLoader('eagrl_jax.evaluation'), autoescape=True, undefined=jinja2.StrictUndefined,
      trim_blocks=True, lstrip_blocks=True)
  environment.filters.update(num=number, signed=signed, count=lambda n: f'{n:,}')
  return environment.get_template(template).render(**values)


def summary_table(result: Mapping) -> str:
  """The arms of metrics.json as an aligned plain-text table for a terminal."""
  rows = [('arm', 'AUROC (95% CI)', 'AUPRC (95% CI)', 'parsed', 'refused', 'Jaccard@K', 'chance', 'attention KL',
           'permuted')]
  for arm in arm_rows(result):
    rows.append((arm['name'], *(interval_text(arm[m]) for m in ('auroc', 'auprc')),
                 *(percent(arm[m]) for m in ('parse_rate', 'refusal_rate')),
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
    rows.append({
        'name': name, 'gloss': ARMS.get(name, ''), 'token': drawing.token(name),
        **{m: interval(arm.get(m)) for m in metrics.METRICS},
        **{m: _mean(interval(arm.get(m))) for m in ('parse_rate', 'refusal_rate')},
        **{f'jaccard_{kind}': interval(named.get(kind)) for kind in ('expert', 'random', 'truth', 'random_truth')},
        'kl': interval(kl), 'kl_permuted': interval(kl.get('permuted')) if isinstance(kl, Mapping) else None})
  return rows


def _context(workdir: Path, share: bool) -> dict[str, Any]:
  outdated = provenance.outdated(workdir)
  of_stage = lambda name, read=read_json: None if name.partition('/')[0] in outdated else read(workdir / name)
  result = of_stage('evaluate/metrics.json') or {}
  manifest = of_stage('prepare/manifest.json') or {}
  arms = arm_rows(result)
  notes = {kind: {a['name']: interval_text(a[kind]) for a in arms} for kind in ('auroc', 'auprc')}
  for arm in arms:
    for kind, mark in (('auroc', 0.5), ('auprc', result.get('prevalence'))):
      low = 0.4 if kind == 'auroc' else 0.0
      arm[f'{kind}_bar'] = _bar(arm[kind], arm['name'], low, mark)
  drawn = lambda found: {arm: yp for arm, yp in found.items() if arm in DRAWN or arm not in ARMS}
  headline = [a for a in arms if a['name'] in ('base', 'rl', 'expert') and a['auroc']]  # before, after, the expert
  predictions = of_stage('evaluate/predictions.parquet', _predictions) or {}
  logs = {stage: of_stage(f'{stage}/metrics.jsonl', read_lines) or [] for stage in STAGES}
  curves = [(stage, [Markup(svg) for _, svg in learning.learning_curves(rows, stage)]) for stage, rows in logs.items()]
  rewards, robustness = of_stage('search/rewards.json'), of_stage('robustness/metrics.json')
  transfer = {path.parent.name: read_json(path) | {
      'attrition': _attrition(read_json(path.with_name('manifest.json')) or {})}
              for path in sorted(workdir.glob('transfer/[!.]*/metrics.json'))
              if f'transfer/{path.parent.name}' not in outdated}
  config, environment = read_json(workdir / 'config.json') or {}, read_json(workdir / 'environment.json') or {}
  groups = _subgroups(result)
  kinds = {'age' if row['name'].startswith('age ') else 'sex' for row in groups if row['n'] is not None}
  known = {'config': config, 'manifest': manifest, 'environment': environment, 'result': result,
           'subgroups': sorted(kinds, reverse=True), 'robustness': robustness, 'transfer': list(transfer),
           'split': of_stage('prepare/splits.parquet', _split)}
  tree, cases = (None if share else of_stage(name) for name in ('search/tree.json', 'evaluate/cases.json'))
  salience = (config.get('expert') or {}).get('salience', '')
  return {
      'share': share, 'outdated': outdated, 'result': result, 'arms': arms,
      'unit': kept_apart((config.get('data') or {}).get('source', '')).removesuffix('s'),
      'undrawn': [arm for arm in predictions if arm not in drawn(predictions)], 'paired': sections.paired(result),
      'recalibration': [{'name': arm, **metrics.calibration(*yp), 'brier': metrics.brier(*yp),
                         'log_loss': metrics.log_loss(*yp), 'ece': metrics.expected_calibration_error(*yp),
                         'min_ps': metrics.min_precision_recall(*yp),
                         'early': interval((result.get('arms') or {}).get(arm, {}).get('early_score'))}
                        for arm, yp in predictions.items()],
      # Before anything is evaluated, that of the expert's stage.
      'audit': result.get('audit') or of_stage('expert/audit.json') or [], 'early_audit': not result.get('audit'),
      'few': few(result), 'subgroups': groups,
      'plots': [Markup(svg) for svg in (
          figures.roc(drawn(predictions), notes['auroc']), figures.precision_recall(drawn(predictions), notes['auprc']),
          figures.calibration(drawn(predictions), subgroups.SMALLEST if share else 1),
          figures.decision(drawn(predictions)))] if predictions else [],
      'curves': curves, 'kept': sections.kept(of_stage('rl/summary.json')),
      'rewards': Markup(figures.rewards(rewards['all'], rewards['selected'])) if rewards else None,
      'tree': patients.roots(tree) if tree else None, 'cases': [patients.case(c) for c in cases] if cases else None,
      'robustness': sections.robustness(robustness), 'faithfulness': sections.faithfulness(robustness),
      'members': sections.members(robustness, of_stage('expert/summary.json'), salience),
      'transfer': sections.transfer(transfer, ARMS),
      'former': sorted(name.removeprefix('transfer/') for name in outdated if name.startswith('transfer/')),
      'costs': sections.costs(result),
      'checklist': checklist.table(known) if config or result else [],
      'attrition': _attrition(manifest), 'config': flat(config, share),
      'environment': flat(environment, share), 'headline': headline,
      'cohort': flat({k: v for k, v in manifest.items() if k != 'attrition'}, share)}


def few(result: Mapping[str, Any]) -> int | None:
  """How many test patients have the rarer outcome where they are fewer than anything can be said of; else None."""
  share, n = result.get('prevalence'), result.get('n_test')
  if share is None or not n:
    return None
  events = round(min(share, 1 - share) * n)
  return events if events < study.FEWEST else None


def _predictions(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Test-set labels and probabilities of every arm, in reading order."""
  table = read_columns(path, 'arm', 'boolean_value', 'predicted_boolean_probability')
  if table is None:
    return {}
  arm, label, prob = table.values()
  order = [*(a for a in ARMS if a in arm), *sorted(set(arm.tolist()) - set(ARMS))]
  return {a: (label[arm == a].astype(float), prob[arm == a].astype(float)) for a in order}


def _split(path: Path) -> dict[str, int] | None:
  """Patients in each part by the names of MEDS; None without a split."""
  table = read_columns(path, 'split')
  if table is None:
    return None
  return {name: int(np.sum(table['split'] == name)) for name in ('train', 'tuning', 'held_out')}


def _subgroups(result: Mapping) -> list[dict]:
  """A row a group: counts and, for each arm, its interval and a bar; None where it must not be shown."""
  rows: dict[str, dict] = {}
  for arm, groups in (result.get('subgroups') or {}).items():
    for group in groups:
      row = rows.setdefault(group['name'], {'name': group['name'], 'n': group['n'], 'positives': group['positives'],
                                            'arms': []})
      value = None if group['auroc'] is None else interval({'point': group['auroc'], 'ci95': group['ci95']})
      row['arms'].append({'name': arm, 'token': drawing.token(arm), 'value': value,
                          'bar': _bar(value, arm, 0.4, 0.5)})
  # Versions before this rule left in metrics.json what gives a hidden group away.
  counts = {name: None if row['n'] is None else (row['n'], row['positives']) for name, row in rows.items()}
  everyone = (result.get('n_test', 0), round(result.get('n_test', 0) * result.get('prevalence', 0)))
  for name in subgroups.withheld(counts, everyone):
    rows[name] |= {'n': None, 'positives': None,
                   'arms': [arm | {'value': None, 'bar': Markup('')} for arm in rows[name]['arms']]}
  return list(rows.values())


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
