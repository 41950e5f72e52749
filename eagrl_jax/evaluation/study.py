"""Arms over seeds: means with intervals by patient, the seeds' own spread beside them, and what the paper claims.

All seeds judge the same test patients. A resample of patients is scored seed by seed and averaged, so the intervals
hold for these trained policies; how much another training would differ is the spread between seeds, shown apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from eagrl_jax.evaluation import bootstrap, metrics
from eagrl_jax.evaluation.formats import NAMES, finite
from eagrl_jax.types import ArrayLike

METRICS = ('auroc', 'auprc')  # by which claims are judged
PROPER = ('brier', 'log_loss')  # lower is better; what a reward of probabilities is about
COLUMNS = ('arm', 'AUROC', 'between seeds', 'AUPRC', 'between seeds', 'parsed', 'refused', 'Jaccard with the expert',
           'EAG-RL - arm, AUROC', 'p', 'seeds')
FURTHER = {'min_precision_recall': 'min(P+, Se)', 'calibration_error': 'calibration error', 'slope': 'slope',
           'intercept': 'intercept', 'recalibrated': 'log loss, recalibrated'}
ALPHA = 0.05
FEWEST = 10  # patients of either outcome, below which nothing is claimed
# Claims of arXiv 2508.13579: what is said, the arm that should be ahead, the one that should be behind.
CLAIMS = (
    ('EAG-RL is ahead of SFT', 'eag', 'sft'),
    ('EAG-RL is ahead of GRPO', 'eag', 'grpo'),
    ('EAG-RL is ahead of DAPO', 'eag', 'dapo'),
    ('without stage 1 it is worse', 'eag', 'no_stage1'),
    ('without stage 2 it is worse', 'eag', 'sft'),
    ('without the attention reward it is worse', 'eag', 'no_attention_reward'),
    ('without the adaptive clip it is worse', 'eag', 'no_adaptive_clip'),
    ('without the alignment loss it is worse', 'eag', 'no_alignment'),
    ('the expert\'s features matter: random ones are worse', 'eag', 'random_features'),
    ('the patient matters: features in order of prevalence are worse', 'eag', 'prevalent_features'),
    ('EAG-RL is ahead of the expert', 'eag', 'expert'),
)
SHUFFLED = 'with all features shuffled it loses less than the expert'
TRANSFER = (('expert', 'elsewhere it is ahead of the expert'), ('sft', 'elsewhere it is ahead of SFT'))


def table(label: ArrayLike, probs: Mapping[str, Mapping[int, ArrayLike]], reference: str, n: int = 1000) -> dict:
  """Every arm's scores and its difference from the reference.

  Args:
    label: `[N]` 0 or 1.
    probs: arm -> seed -> `[N]` in [0, 1].
    reference: the arm that the others are compared with, over the seeds that both have.
    n: resamples of patients, the same for every arm and seed.

  Returns:
    arm -> {'seeds', metric of `METRICS` and `PROPER`: {'mean', 'ci95', 'by_seed', 'sd'}, 'further': name of `FURTHER`
    -> mean over seeds, NaN where a seed has none, and for all but the reference 'against': metric -> {'diff'
    (reference minus arm), 'ci95', 'by_seed', 'p', 'p_holm', 'seeds'}}. 'sd' is that between seeds, NaN of one.
    'p' is two-sided by resamples; 'p_holm' is Holm's (1979) over all arms of the metric.
  """
  y = np.asarray(label).astype(int)
  counts, _ = bootstrap.resamples(y, n)
  every = (*METRICS, *PROPER)
  points = {a: {s: {m: metrics.METRICS[m](y, np.asarray(p)) for m in every} for s, p in by.items()}
            for a, by in probs.items()}
  scores = {a: {s: bootstrap.weighted_scores(y, p, counts) for s, p in by.items()} for a, by in probs.items()}
  out: dict[str, dict] = {}
  for arm, by in probs.items():
    seeds = sorted(by)
    out[arm] = {'seeds': seeds, **{m: over_seeds([points[arm][s][m] for s in seeds], [scores[arm][s][m] for s in seeds])
                                   for m in every}}
    each = [further(y, np.asarray(by[s])) for s in seeds]
    out[arm]['further'] = {name: float(np.mean([values[name] for values in each])) for name in FURTHER}
    common = sorted(set(by) & set(probs.get(reference, ())))
    if arm != reference and common:
      out[arm]['against'] = {m: difference(
          [points[reference][s][m] - points[arm][s][m] for s in common],
          [scores[reference][s][m] - scores[arm][s][m] for s in common]) | {'seeds': common} for m in every}
  for m in every:
    adjust([row['against'][m] for row in out.values() if 'against' in row])
  return out


def further(label: np.ndarray, prob: np.ndarray) -> dict[str, float]:
  """Figures of one seed's answers without intervals, by the names of `FURTHER`."""
  found = metrics.beside(label, prob)
  return {**found.pop('calibration'), **found, 'recalibrated': metrics.recalibrated_log_loss(label, prob)}


def rarer(label: ArrayLike) -> int:
  """How many have the rarer outcome. `[N] ->` a number"""
  y = np.asarray(label).astype(bool)
  return int(min(y.sum(), (~y).sum()))


def over_seeds(points: Sequence[float] | np.ndarray, scores: Sequence[np.ndarray] | np.ndarray) -> dict:
  """A score over seeds: {'mean', 'ci95', 'by_seed', 'sd'} of one value and `[R]` resamples a seed."""
  mean = np.mean(scores, 0)
  mean = mean[np.isfinite(mean)]
  return {'mean': float(np.mean(points)), 'ci95': bootstrap.interval(mean), 'by_seed': [float(p) for p in points],
          'sd': float(np.std(points, ddof=1)) if len(points) > 1 else float('nan')}


def difference(points: Sequence[float] | np.ndarray, scores: Sequence[np.ndarray] | np.ndarray) -> dict:
  """A difference over seeds: {'diff', 'ci95', 'by_seed', 'p'} of one value and `[R]` resamples a seed."""
  gap = np.mean(scores, 0)
  gap = gap[np.isfinite(gap)]
  return {'diff': float(np.mean(points)), 'ci95': bootstrap.interval(gap), 'by_seed': [float(p) for p in points],
          'p': bootstrap.two_sided(gap)}


def holm(p: Sequence[float]) -> list[float]:
  """Holm's step-down adjustment (Scand J Stat 6, 1979); NaN stays NaN and is not counted."""
  values = np.asarray(p, float)
  real = np.flatnonzero(np.isfinite(values))
  order = real[np.argsort(values[real], kind='stable')]
  scaled = values[order] * np.arange(len(order), 0, -1)
  adjusted = values.copy()
  adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1) if len(order) else scaled
  return adjusted.tolist()


def adjust(tests: Sequence[dict]) -> None:
  """Gives each of these tests, which have 'p', its 'p_holm' among them."""
  for test, p in zip(tests, holm([test['p'] for test in tests])):
    test['p_holm'] = p


def claims(rows: Mapping[str, dict], shuffled: Mapping | None = None,
           transfers: Mapping[str, Mapping] | None = None, events: int = FEWEST) -> list[dict]:
  """What becomes of each claim: {'claim', 'verdict', 'why'}.

  'reproduced': both metrics' intervals lie above 0 and both p by Holm below .05; 'not by Holm': the intervals alone do;
  'reversed' and 'reversed, not by Holm': the same below 0; 'untested': what it needs was not run, has no interval, or
  fewer than `FEWEST` patients of an outcome; else 'not reproduced'.

  Args:
    rows: a `table` whose reference is the arm ahead.
    shuffled: the row of `perturbed.table` with the largest share of features moved; its p is adjusted over that table.
    transfers: other cohorts, of `elsewhere.gather`; their p is adjusted over all of them.
    events: test patients of the rarer outcome.
  """
  out = []
  for text, ahead, behind in CLAIMS:
    found = rows.get(behind, {}).get('against') if ahead in rows else None
    out.append(_judged(text, found and {f'{m.upper()} {ahead} - {behind}': found[m] for m in METRICS}, events))
  if shuffled:
    less = shuffled['less_than_expert']
    out.append(_judged(SHUFFLED, {f'{m.upper()} change of eag - change of expert': less[m] for m in METRICS},
                       shuffled.get('events', events)))
  else:
    out.append({'claim': SHUFFLED, 'verdict': 'untested',
                'why': 'no records with all features shuffled were judged as the config is now (study.robustness)'})
  for behind, text in TRANSFER:
    if not transfers:
      out.append({'claim': text, 'verdict': 'untested',
                  'why': 'no transfer of these policies was run, or none that kept its answers'})
    for cohort, of in (transfers or {}).items():
      found = of['arms'].get(behind, {}).get('against')
      out.append(_judged(f'{text}: {cohort}', found and {f'{m.upper()} eag - {behind}': found[m] for m in METRICS},
                         of.get('events', events)))
  return [*out, {'claim': 'an average gain of 14.62 %', 'verdict': 'untested',
                 'why': 'of pretrained models of 3 to 8 B; the mean of which figures is not said'}]


def _judged(text: str, gaps: Mapping[str, Mapping] | None, events: int) -> dict:
  """A claim by differences, {name: {'diff', 'ci95', 'p_holm'}}, of so many patients of the rarer outcome."""
  if not gaps:
    return {'claim': text, 'verdict': 'untested', 'why': 'an arm was not run'}
  if events < FEWEST:
    return {'claim': text, 'verdict': 'untested',
            'why': f'{events} patients of the rarer outcome are too few: resamples of them hold next to nothing'}
  if not all(finite(x) for g in gaps.values() for x in (g['diff'], *g['ci95'])):
    return {'claim': text, 'verdict': 'untested',
            'why': 'a difference or its interval does not exist: one outcome alone, or fewer than two resamples'}
  above, below = (all(side(g['ci95']) for g in gaps.values()) for side in (lambda c: c[0] > 0, lambda c: c[1] < 0))
  sure = all(g['p_holm'] < ALPHA for g in gaps.values())
  verdict = (('reproduced' if sure else 'not by Holm') if above else
             ('reversed' if sure else 'reversed, not by Holm') if below else 'not reproduced')
  return {'claim': text, 'verdict': verdict, 'why': '; '.join(
      f'{name} {g["diff"]:+.3f} ({g["ci95"][0]:+.3f} to {g["ci95"][1]:+.3f})' for name, g in gaps.items())}


def markdown(study: Mapping) -> str:
  """study.json as Markdown: the table, then the claims."""
  lines = [
      f'# {study["cohort"]}, {study["task"]}', '',
      f'{study["n_test"]} test patients, {100 * study["prevalence"]:.1f} % positive; seeds '
      f'{", ".join(map(str, study["seeds"]))}. In brackets 95 % intervals by patient of the mean over seeds; '
      '"between seeds" is the standard deviation of the seeds\' own values. Differences are EAG-RL minus the arm, p by '
      'Holm.', '', '| ' + ' | '.join(COLUMNS) + ' |', '|---' * len(COLUMNS) + '|']
  for arm, row in study['arms'].items():
    cells = [arm]
    for m in METRICS:
      low, high = row[m]['ci95']
      cells += [f'{row[m]["mean"]:.3f} ({low:.3f}-{high:.3f})', _or_dash(row[m]['sd'], '.3f')]
    cells += [*(_or_dash(row.get(rate), '.1%') for rate in ('parse_rate', 'refusal_rate')),
              _or_dash(row.get('jaccard'), '.3f')]
    gap = row.get('against', {}).get('auroc')
    cells += [f'{gap["diff"]:+.3f} ({gap["ci95"][0]:+.3f} to {gap["ci95"][1]:+.3f})', f'{gap["p_holm"]:.3f}'] if gap \
        else ['', '']
    lines.append('| ' + ' | '.join([*cells, str(len(row['seeds']))]) + ' |')
  lines += ['', '| claim | verdict | why |', '|---|---|---|']
  lines += [f'| {c["claim"]} | {c["verdict"]} | {c["why"]} |' for c in study['claims']]
  lines += ['', *_proper(study)]
  names = (*FURTHER.values(), 'early score')
  lines += ['', '## Further figures', '', 'Means over seeds. "Recalibrated": the log loss that is left with the slope '
            'and intercept which are best on these very patients.', '', '| arm | ' + ' | '.join(names) + ' |',
            '|---' * (1 + len(names)) + '|']
  for arm, row in study['arms'].items():
    values = [*(row['further'][name] for name in FURTHER), row.get('early_score')]
    lines.append('| ' + ' | '.join([arm, *(_or_dash(value, '.3f') for value in values)]) + ' |')
  return '\n'.join(lines) + '\n'


def _proper(study: Mapping) -> list[str]:
  """Lines of the table of `PROPER`."""
  p = study['prevalence']
  nothing = -sum(q * np.log(q) for q in (p, 1 - p) if q > 0)
  lines = [
      '## Proper scores', '',
      f'Lower is better; whoever knows nothing but the test prevalence has Brier {p * (1 - p):.3f}, log loss '
      f'{nothing:.3f}. Differences are EAG-RL minus the arm, below 0 where EAG-RL is better, p by Holm.', '',
      '| arm | Brier | EAG-RL - arm | p | log loss | EAG-RL - arm | p |', '|---|---|---|---|---|---|---|']
  for arm, row in study['arms'].items():
    cells = [arm]
    for m in PROPER:
      gap = row.get('against', {}).get(m)
      cells += [f'{row[m]["mean"]:.3f} ({row[m]["ci95"][0]:.3f}-{row[m]["ci95"][1]:.3f})',
                *([f'{gap["diff"]:+.3f} ({gap["ci95"][0]:+.3f} to {gap["ci95"][1]:+.3f})', f'{gap["p_holm"]:.3f}']
                  if gap else ['', ''])]
    lines.append('| ' + ' | '.join(cells) + ' |')
  return lines


def kept(validated: Mapping[str, Mapping[int, Mapping]]) -> str:
  """What validation patients said in training, as a section of study.md.

  Args:
    validated: arm -> seed -> rl/summary.json.
  """
  rows = [(arm, seed, found) for arm, by in validated.items() for seed, found in sorted(by.items())]
  of = rows[0][2]
  lines = ['## Validation in training', '',
           f'{of["patients"]} patients of the validation split, {of["positive"]} of them positive, in {of["steps"]} '
           'steps. The best of several such figures is too good; test patients have no part in it.', '',
           f'| arm | seed | policy kept, after so many steps | best on validation | its {NAMES[of["by"]]} there |',
           '|---|---|---|---|---|']
  lines += [f'| {arm} | {seed} | {found["kept_step"]} | {found["best_step"]} | {found["best"]:.3f} |'
            for arm, seed, found in rows]
  return '\n'.join(lines) + '\n'


def _or_dash(value: float | None, form: str) -> str:
  return '–' if value is None or not np.isfinite(value) else format(value, form)
