"""What a score could be made of besides physiology: checks that every cohort gets, printed in the report.

A check is a warning, not a verdict: missingness and age may well predict an outcome. What they reach belongs beside
what the policy reaches.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import stats

from eagrl_jax.ehr.records import ENDS_EARLY, LATE_STEPS
from eagrl_jax.evaluation import baselines, bootstrap, metrics

PERMUTATIONS = 30
ALARM = 0.001  # p below which chance is not believed: one false alarm in a thousand sound cohorts, of each such check
CLOSE = 0.02  # AUROC of a model that such a baseline may not come near


@dataclasses.dataclass(frozen=True)
class Check:
  """One line of the audit."""

  name: str
  value: float  # a count, or an AUROC
  ci95: tuple[float, float] | None  # of an AUROC
  warning: str  # '' = nothing to say


def audit(*, subject_id: np.ndarray, label: np.ndarray, age: np.ndarray, table: baselines.Table, hours: np.ndarray,
          events: np.ndarray, begins: np.ndarray, window: float, after_stay: np.ndarray | None,
          splits: dict[str, np.ndarray], attrition: tuple[tuple[str, int, str], ...], model_auroc: float, seed: int,
          unit: str = 'patients', resamples: int = 1000) -> list[Check]:
  """Runs every check.

  Args:
    subject_id: `[N]`. label: `[N]`. age: `[N]`, NaN unknown.
    hours: `[N]` latest input time; events: `[N]` inputs a patient.
    begins: `[N]` hour at which the last visit that is shown begins; window: prediction time in hours, 0 = whole record.
    after_stay: `[N]` inputs later than the end of the stay; None where no source says when stays end.
    splits: rows by name; 'train' and 'test' are read for the baselines.
    attrition: the source's own counts, of which `LATE_STEPS` and `ENDS_EARLY` are shown.
    model_auroc: of the best model on test; NaN to compare with none.
    unit: what an id names, 'patients' | 'stays', of which several may be one patient's.
  """
  train, test = splits['train'], splits['test']
  checks = [_overlap(subject_id, splits, unit)]
  if window:
    checks.append(_count(f'{unit} with a visit after the prediction time', begins >= window,
                         'inputs are later than the prediction time'))
  if after_stay is not None:
    checks.append(_count(f'{unit} with inputs after the end of their stay', after_stay > 0,
                         'inputs are later than discharge or death, and may tell of it'))
  late = lambda step: step.rpartition(': ')[2] in LATE_STEPS  # behind the name of a table, where a source reads several
  checks += [Check(f'dropped: {step}', float(n), None, '') for step, n, _ in attrition if late(step)]
  checks += [Check(f'kept: {step}', float(n), None, 'where it is the end of a stay, a short record tells the outcome')
             for step, n, _ in attrition if step == ENDS_EARLY]
  checks.append(_order(subject_id, label, resamples))
  checks.append(_permuted(table, label, train, test, seed))
  column = lambda v: np.asarray(v, np.float64)[:, None]
  for name, x in (('missingness alone', (table.measured > 0).astype(np.float64)), ('age alone', column(age)),
                  ('record length alone', np.stack([hours, events], 1).astype(np.float64))):
    prob = baselines.fitted('logistic', x, label, train, test, seed)
    checks.append(_judged(name, label[test], prob, resamples, model_auroc))
  return checks


def _overlap(subject_id: np.ndarray, splits: dict[str, np.ndarray], unit: str) -> Check:
  names = list(splits)
  shared = sum(len(np.intersect1d(subject_id[splits[a]], subject_id[splits[b]]))
               for i, a in enumerate(names) for b in names[i + 1:])
  unknown = 'the source names no patients: two stays of one may be in two splits' if unit == 'stays' else ''
  return Check(f'{unit} in two splits', float(shared), None, f'{unit} are in two splits' if shared else unknown)


def _count(name: str, found: np.ndarray, warning: str) -> Check:
  return Check(name, float(found.sum()), None, warning if found.any() else '')


def _order(subject_id: np.ndarray, label: np.ndarray, resamples: int) -> Check:
  """The order of ids, numeric where they are numbers: sorted by outcome in more than one published cohort.

  Warned of by the two-sided rank-sum test.
  """
  as_number = [int(m) if (m := str(i)).isdigit() else None for i in subject_id]
  if all(n is not None for n in as_number):
    rank = np.argsort(np.argsort(np.array(as_number)))
  else:
    rank = np.argsort(np.argsort(np.array([str(i) for i in subject_id])))
  check = _judged('order of the ids', label, rank / max(len(rank) - 1, 1), resamples)
  by_chance = metrics.undefined(label) or stats.mannwhitneyu(rank[label == 1], rank[label == 0]).pvalue >= ALARM
  note = '' if by_chance else 'ids are ordered by outcome: never show, sort or split by them'
  return dataclasses.replace(check, warning=note)


def _permuted(table: baselines.Table, label: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int) -> Check:
  """Mean over permutations: where one axis tells patients apart, a single one lands far from .5 on either side."""
  generator, scores = np.random.default_rng((seed, 101)), []
  for _ in range(PERMUTATIONS):
    permuted = label.copy()
    permuted[train] = generator.permutation(label[train])
    prob = baselines.fitted('logistic', table.x, permuted, train, test, seed, penalties=baselines.PENALTIES[1:2])
    scores.append(metrics.auroc(label[test], prob))
  mean, error = float(np.mean(scores)), float(np.std(scores, ddof=1) / np.sqrt(PERMUTATIONS))
  far = stats.t.ppf(1 - ALARM / 2, PERMUTATIONS - 1) * error
  warning = 'predicts the outcome, and must not' if abs(mean - 0.5) > far else ''
  return Check('labels permuted in train', mean, (mean - 1.96 * error, mean + 1.96 * error), warning)


def _judged(name: str, label: np.ndarray, prob: np.ndarray, resamples: int,
            model_auroc: float = float('nan')) -> Check:
  """AUROC with its interval; warned of where it is near the model."""
  value = metrics.auroc(label, prob)
  low, high = bootstrap.bootstrap(label, prob, resamples)['auroc']['ci95']
  warning = f'as good as the best model, or within {CLOSE} of it' if value >= model_auroc - CLOSE else ''
  return Check(name, value, (low, high), warning)
