"""The TRIPOD+AI items, with what a run knows about itself; the rest is for the authors.

Collins et al., BMJ 2024;385:e078378, doi 10.1136/bmj-2023-078378: 27 items, here in short words of our own. The
original wording counts for a submission.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from eagrl_jax.ehr import tasks
from eagrl_jax.ehr.splits import FOLDS, kept_apart

ITEMS = (  # (item, part, what it asks for)
    ('1', 'Title', 'Model developed or evaluated, for whom, for which outcome'),
    ('2', 'Abstract', 'Structured by the checklist for abstracts'),
    ('3a', 'Introduction', 'Clinical context, rationale, existing models'),
    ('3b', 'Introduction', 'Target population, place in the care pathway, users'),
    ('3c', 'Introduction', 'Known health inequalities between groups'),
    ('4', 'Introduction', 'Objectives: development, evaluation or both'),
    ('5a', 'Methods', 'Sources of the data, and whom they represent'),
    ('5b', 'Methods', 'Dates of accrual and of follow-up'),
    ('6a', 'Methods', 'Setting, number and place of centres'),
    ('6b', 'Methods', 'Who was eligible'),
    ('6c', 'Methods', 'Treatments, and how they were dealt with'),
    ('7', 'Methods', 'Preparation and quality control of the data'),
    ('8a', 'Methods', 'Outcome, time horizon, how it was assessed'),
    ('8b', 'Methods', 'Who assessed it, where judgement was needed'),
    ('8c', 'Methods', 'Blinding of the assessment'),
    ('9a', 'Methods', 'How the first predictors were chosen'),
    ('9b', 'Methods', 'Definition and timing of every predictor'),
    ('9c', 'Methods', 'Who assessed predictors, where judgement was needed'),
    ('10', 'Methods', 'Why the study has this size'),
    ('11', 'Methods', 'Missing data'),
    ('12a', 'Methods', 'How the data were divided and used'),
    ('12b', 'Methods', 'How predictors enter: form, rescaling'),
    ('12c', 'Methods', 'Type of model, building steps, tuning, internal validation'),
    ('12d', 'Methods', 'Differences between sites or groups in the analysis'),
    ('12e', 'Methods', 'Measures of performance, and comparisons'),
    ('12f', 'Methods', 'Updating of the model after evaluation'),
    ('12g', 'Methods', 'How predictions are computed'),
    ('13', 'Methods', 'Class imbalance, and recalibration after it'),
    ('14', 'Methods', 'What was done about fairness'),
    ('15', 'Methods', 'Output of the model, thresholds and why'),
    ('16', 'Methods', 'Differences between development and evaluation data'),
    ('17', 'Methods', 'Ethical approval, consent or waiver'),
    ('18a', 'Open science', 'Funding'),
    ('18b', 'Open science', 'Conflicts of interest'),
    ('18c', 'Open science', 'Protocol'),
    ('18d', 'Open science', 'Registration'),
    ('18e', 'Open science', 'Availability of the data'),
    ('18f', 'Open science', 'Availability of the code'),
    ('19', 'Patients and public', 'Their part in the study'),
    ('20a', 'Results', 'Flow of participants, with and without the outcome'),
    ('20b', 'Results', 'Characteristics, missing data, follow-up'),
    ('20c', 'Results', 'Predictors in development and evaluation data compared'),
    ('21', 'Results', 'Participants and events in each analysis'),
    ('22', 'Results', 'The full model, so that others can use it'),
    ('23a', 'Results', 'Performance with intervals, in key groups too'),
    ('23b', 'Results', 'Differences in performance between sites or groups'),
    ('24', 'Results', 'Results of updating'),
    ('25', 'Discussion', 'Interpretation, fairness included'),
    ('26', 'Discussion', 'Limitations'),
    ('27a', 'Discussion', 'Input of poor quality or missing, in use'),
    ('27b', 'Discussion', 'What users have to do and to know'),
    ('27c', 'Discussion', 'Next steps, generalisability'))


_UNMEASURED = {  # by prompt.style
    'compact': 'Policy: what was not measured is not in the prompt, nothing imputed.',
    'full': 'Policy: NaN at a visit without it, features without any value listed as such, nothing imputed.'}


_AUTHORS = 'To be filled by the authors'


def table(run: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Every item with what the run knows, '' where that is nothing.

  Args:
    run: 'config', 'manifest', 'environment', 'result' (of evaluate), 'robustness' as read from the run's folder, each
      {} where absent; 'split', how many are in each part by the names of MEDS, None where absent; 'transfer', the names
      of the cohorts that the models were taken to; and 'subgroups', those of 'sex' and 'age' of which a group is shown.
  """
  known = _known(run) if run['config'] else {}
  parts = list(dict.fromkeys(part for _, part, _ in ITEMS))
  return [{'item': item, 'part': part, 'order': parts.index(part), 'asks': asks, 'answer': known.get(item, ''),
           'whole': bool(known.get(item)) and _AUTHORS not in known[item]}
          for item, part, asks in ITEMS]


def _known(run: Mapping[str, Any]) -> dict[str, str]:
  c, manifest, result = run['config'], run['manifest'], run['result']
  at: Callable[..., Any] = lambda section, field, default='': (c.get(section) or {}).get(field, default)
  task, cohort = result.get('task') or at('data', 'task'), manifest.get('name') or at('data', 'source')
  unit, groups = kept_apart(at('data', 'source')).removesuffix('s'), ' and '.join(run['subgroups'])
  divided = 'as a file says' if at('data', 'splits') else 'at random'
  out = {
      '7': _join(f'measurements in bins of {at("data", "bin_hours"):g} h' if at('data', 'bin_hours') else '',
                 f'{at("data", "aggregate")} within a bin' if at('data', 'aggregate') else '',
                 'values outside the hard range of a feature set missing'),
      '11': (_UNMEASURED.get(at('prompt', 'style'), 'Policy: nothing imputed.') + ' Expert: last value carried '
             'forward, before the first one the train median'
             + (', and a channel of what was measured.' if at('expert', 'use_mask_channel') else '.')),
      '12a': _division(at, c.get('seed'), run['split'], unit) if c.get('data') else '',
      '12b': ('Policy: raw values with units or flags, in text. Expert: z-scores by train statistics; a channel a '
              'level of features whose spec says so.'),
      '12c': _join(f'language model ({_policy(at)}), ' + (
                       'policy optimisation without distillation' if at('rl', 'start') == 'base' else
                       'distilled from a tree search, then policy optimisation'),
                   f'{f"expert: {members} ConCare members, " if (members := at("expert", "members")) else "expert: "}'
                   f'stopped early by validation {unit}s',
                   'policy: fixed numbers of steps' + (
                       '' if at('rl', 'keep', 'last') == 'last' else
                       f', of the last stage the best by validation {unit}s') + '; settings under Config'),
      '12e': ('AUROC, AUPRC, Brier, log loss, calibration, net benefit'
              + (', early score' if result.get('early') else '') + f'; bootstrap by {unit}'
              + (f', {at("evaluate", "bootstrap"):,} resamples' if at('evaluate', 'bootstrap') else '')
              + '; paired differences between arms; logistic regression and boosting beside them.'),
      '12f': 'Not done.',
      '12g': _join(_answers(at('evaluate', 'samples', 0), at('evaluate', 'temperature', 1.0)),
                   'an answer that cannot be read counts as the train prevalence'),
      '14': 'Nothing in training' + (f'; performance by {groups} is reported' if groups else '')
            + '.',
      '15': 'A probability. No threshold is recommended; net benefit is shown over a range of them.',
      '16': (f'The same source, divided {divided}' +
             (f'; and the cohorts {", ".join(run["transfer"])} (Transfer).' if run['transfer'] else '.'))}
  if task:
    out['1'] = f'Development and evaluation; {task}; {cohort}.'
    out['4'] = 'Development and evaluation.'
    asked = at('data', 'question') or (tasks.KNOWN[task].question if task in tasks.KNOWN else '')
    out['8a'] = f'{task}{f": {asked}" if asked else ""}. {_AUTHORS}: how it was assessed.'
  if cohort:
    simulated = ' Simulated, not patients.' if manifest.get('synthetic') else ''
    source = f' (source {at("data", "source")})' if at('data', 'source') else ''
    out['5a'] = f'{cohort}{source}.{simulated}'
  if manifest.get('setting'):
    out['6a'] = f'{manifest["setting"]}. {_AUTHORS}: centres.'
  if manifest.get('attrition'):
    out['6b'] = 'Steps from source to cohort under Cohort.'
    out['20a'] = f'{out["6b"]} {_AUTHORS}: the outcome at each step.'
  if manifest.get('features'):
    hours = _horizon(at('data', 'source'), at('data', 'window_hours', None))
    out['9b'] = f'{manifest["features"]} features of the record{hours}, age and sex; units and ranges in prepare/.'
  if manifest.get('patients'):
    patients, steps = manifest['patients'], manifest.get('attrition') or ()
    undrawn = sum(count for step, count, _ in steps if step == 'not drawn by the protocol')
    out['10'] = (f'{patients:,} of {patients + undrawn:,} eligible {unit}s, drawn by the protocol' if undrawn else
                 f'All {patients:,} {unit}s that were eligible') + '; no calculation of the size was made.'
  if result.get('n_test'):
    share = f' ({100 * result["prevalence"]:.1f} % with the outcome)' if 'prevalence' in result else ''
    whole = f'{manifest["patients"]:,} {unit}s, {manifest.get("positives", 0):,} events in all; ' \
        if manifest.get('patients') else ''
    out['21'] = f'{whole}{result["n_test"]:,} test {unit}s{share}.'
    if 'prevalence' in result:
      balanced = 'as many training trajectories of either outcome; ' if at('search', 'balance') else ''
      out['13'] = (f'{100 * result["prevalence"]:.1f} % of the test {unit}s have the outcome; {balanced}'
                   'no recalibration.')
    out['23a'] = 'Under Results and Differences' + (
        ', and Subgroups.' if groups else f'. {_AUTHORS}: key groups.')
    out['23b'] = f'By {groups} under Subgroups.' if groups else ''
    out['22'] = 'Weights, tokenizer and every setting in the run\'s folder; `export` writes them for other software.'
    out['24'] = 'Not updated.'
  git = run['environment'].get('git')
  out['18f'] = f'eagrl_jax{", commit " + git[:12] if git else ""}; versions under Versions.'
  if run['robustness']:
    out['27a'] = 'Left-out features, noise and other units are tested under Robustness.'
  return out


def _join(*parts: str) -> str:
  text = '; '.join(part for part in parts if part)
  return text[:1].upper() + text[1:] + '.'


def _horizon(source: str, window_hours: float | None) -> str:
  """Which hours of the record are used; None is not known, 0 all of them."""
  if window_hours is None:
    return ''
  if source == 'meds':  # counted back from the prediction time
    return f', from the last {window_hours:g} h before the prediction' if window_hours else \
        ', from the whole record before the prediction'
  return f', from the first {window_hours:g} h' if window_hours else ', from the whole record'


def _division(at: Callable[..., Any], seed: int | None, split: Mapping[str, int] | None, unit: str) -> str:
  """How many are in each part, and how they got there."""
  sizes = f'{split["train"]:,} train, {split["tuning"]:,} validation and {split["held_out"]:,} test {unit}s' \
      if split else ''
  if at('data', 'splits'):
    return _join(sizes, 'split as a file says')
  protocol, stratified = at('data', 'protocol'), 'stratified by outcome'
  if protocol.startswith('tjh'):
    stratified = f'test {unit}s at random, the others stratified by outcome'
  elif ':' in protocol:
    stratified = f'{FOLDS} folds stratified by outcome, fold {protocol.partition(":")[2]} of 0 to {FOLDS - 1} tests'
  made_by = seed if at('data', 'seed', None) is None else at('data', 'seed')
  return _join(sizes, f'split by {unit}', f'protocol {protocol}' if protocol else '', stratified,
               '' if made_by is None else f'seed {made_by}')


def _answers(samples: int, temperature: float) -> str:
  if not samples:
    return ''
  return f'mean of {samples} sampled answers' if temperature and samples > 1 else \
      'one sampled answer' if temperature else 'one greedy answer'


def _policy(at: Any) -> str:
  """The start of the policy without the folder that it lies in."""
  return str(at('lm', 'checkpoint', 'unknown')).rstrip('/\\').replace('\\', '/').rsplit('/', 1)[-1]
