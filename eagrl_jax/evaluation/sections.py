"""Parts of the report that a run has only where it went so far: differences, robustness, faithfulness, transfer, costs.

Each takes what a stage wrote and gives what the template shows, or something empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from eagrl_jax.evaluation import drawing, figures
from eagrl_jax.evaluation.formats import NAMES, finite, interval

KINDS = {'sampling': 'Same prompts, other random draws', 'order': 'Features in another order',
         'noise': 'Noise on the values', 'drop': 'Features left out', 'units': 'Other units, undeclared',
         'wording': 'Prompt in other words'}
SETS = {'own': 'the features it named', 'random': 'as many random features',
        'expert': "as many of the expert's"}
MEASURES = ('comprehensiveness', 'sufficiency')


def robustness(result: Mapping | None) -> dict[str, Any] | None:
  """Figures, and a row a condition with every arm's change; None without the stage."""
  if not result:
    return None
  arms = list(result['unchanged'])
  words = result.get('levels') or {}
  rows = []
  for row in result['conditions']:
    level = row['level']
    detail = '' if row['kind'] not in words else f'{level:g} SD' if row['kind'] == 'noise' else f'{100 * level:g} %'
    rows.append({'name': KINDS.get(row['kind'], row['kind']), 'level': detail, 'cells': {
        m: [_change(row['arms'][arm], m) for arm in arms] for m in ('auroc', 'auprc')}})
  return {
      'n': result['n'], 'samples': result['samples'], 'rows': rows,
      'arms': [{'name': arm, 'token': drawing.token(arm)} for arm in arms],
      'unchanged': {m: [interval(result['unchanged'][arm][m]) for arm in arms] for m in ('auroc', 'auprc')},
      'notes': [_units(row) for row in result['conditions'] if row['kind'] == 'units'],
      'figures': [Markup(svg) for kind in words if (svg := _curve(result, kind, words[kind]))]}


def _change(arm: Mapping, metric: str) -> dict | None:
  return interval((arm.get('change') or {}).get(metric))


def _units(row: Mapping) -> str:
  return (f'{100 * row["level"]:g} %: {row["features_by_spec"]} features by a unit that their spec knows, '
          f'{row["features_times_ten"]} times ten, {row["values_out_of_range"]:,} values out of range and so missing')


def _curve(result: Mapping, kind: str, words: str) -> str:
  found = sorted((r for r in result['conditions'] if r['kind'] == kind), key=lambda r: r['level'])
  if not found:
    return ''
  levels = [0.0, *(row['level'] for row in found)]
  arms = {arm: [interval(at[arm]['auroc']) or {} for at in (result['unchanged'], *(row['arms'] for row in found))]
          for arm in result['unchanged']}
  return figures.robustness(kind, KINDS[kind], words, levels, arms)


def faithfulness(result: Mapping | None) -> list[dict]:
  """A row an arm and set of features."""
  rows = []
  for arm, sets in ((result or {}).get('faithfulness') or {}).items():
    for i, (kind, found) in enumerate(sets.items()):
      over = found.get('over_random') or {}
      rows.append({'arm': arm, 'token': drawing.token(arm), 'first': i == 0, 'span': len(sets),
                   'set': 'its own most salient' if (arm, kind) == ('expert', 'own') else SETS[kind],
                   'size': interval(found['size']), **{m: interval(found[m]) for m in MEASURES},
                   **{f'{m}_over': interval(over.get(m)) for m in MEASURES}})
  return rows


def members(result: Mapping | None, expert: Mapping | None, salience: str) -> dict | None:
  """Agreement between the expert's members, trained from other seeds, beside chance; None of a single member.

  Args:
    result: of the robustness stage, which has it of test patients and with intervals.
    expert: the expert stage's summary, which has it of validation patients.
    salience: source of the expert's salience.
  """
  found, patients = (result or {}).get('member_agreement'), 'test'
  if not found and expert:
    overlap, patients = expert['stability'].get(salience) or {}, 'validation'
    found = {'k': expert['top_k'], 'jaccard': overlap.get('jaccard'), 'random': overlap.get('chance')}
  if not found or not finite((interval(found['jaccard']) or {}).get('mean')):
    return None
  return {'k': found['k'], 'jaccard': interval(found['jaccard']), 'random': interval(found['random']),
          'patients': patients, 'salience': salience}


def kept(validated: Mapping | None) -> str:
  """Which policy the rl stage left, by its summary; nothing where no validation patients were asked."""
  if not validated:
    return ''
  v = validated
  best = (f'{NAMES[v["by"]]} {v["best"]:.3f} on {v["patients"]} validation patients, '
          f'{v["positive"]} of them positive')
  why = (f'the best by {best}' if v['kept_step'] == v['best_step'] else
         f'the last; the best, {best}, was that after {v["best_step"]}')
  return f'The policy after {v["kept_step"]} of {v["steps"]} steps is kept: {why}.'


def paired(result: Mapping) -> list[dict]:
  """A row a comparison of two arms and metric."""
  rows = []
  for row in result.get('paired') or []:
    p = row.get('p')
    rows.append({'a': row['a'], 'b': row['b'], 'metric': NAMES.get(row['metric'], row['metric']),
                 'diff': interval({'mean': row['diff'], 'ci95': row.get('ci95')}),
                 'p': '–' if not finite(p) else f'{p:.3f}' if p >= 0.001 else '<0.001'})
  return rows


def transfer(found: Mapping[str, Mapping], glosses: Mapping[str, str]) -> list[dict]:
  """Tables of every cohort that the run's models were taken to: scores, calibration, paired differences, its audit.

  Args:
    found: the cohort's metrics.json, with `attrition` rows, by name.
  """
  tables = []
  for name, result in found.items():
    rows = [{'name': arm, 'gloss': glosses.get(arm, ''), 'token': drawing.token(arm),
             **{m: interval(values.get(m)) for m in ('auroc', 'auprc', 'brier', 'log_loss')},
             'home': interval(values.get('auroc_at_home')), 'ece': values.get('calibration_error'),
             **{m: (values.get('calibration') or {}).get(m) for m in ('slope', 'intercept')}}
            for arm, values in (result.get('arms') or {}).items()]
    if rows:
      found_of = result.get('features') or {}
      known = len(found_of.get('mapped') or ()), len(found_of.get('mapped') or ()) + len(found_of.get('lacking') or ())
      cohort = result.get('cohort') or name
      tables.append({'name': cohort if cohort == name else f'{cohort} ({name})', 'n': result.get('n_test'),
                     'trained_on': result.get('trained_on') or '', 'known': known, 'rows': rows,
                     'recalibrated': any(finite(row['slope']) for row in rows), 'paired': paired(result),
                     'audit': result.get('audit') or [], 'attrition': result.get('attrition') or []})
  return tables


def costs(result: Mapping) -> list[dict]:
  """The arms that say what an answer cost, cheapest first."""
  rows = []
  for name, arm in (result.get('arms') or {}).items():
    cost = arm.get('cost')
    if isinstance(cost, Mapping) and cost:
      rows.append({'name': name, 'token': drawing.token(name), 'auroc': interval(arm.get('auroc')),
                   'parse_rate': arm.get('parse_rate'), 'seconds': cost.get('seconds'),
                   'new_tokens': cost.get('new_tokens'), 'compiled': bool(cost.get('with_compilation'))})
  return sorted(rows, key=lambda row: (not finite(row['seconds']), row['seconds'] if finite(row['seconds']) else 0))
