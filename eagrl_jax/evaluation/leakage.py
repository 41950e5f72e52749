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


@dataclasses.dataclass(frozen=True)
class Shown:
  """N patients by what the models are shown of them, and by what could give the outcome away."""

  subject_id: np.ndarray  # [N]
  label: np.ndarray  # [N]
  age: np.ndarray  # [N], NaN unknown
  features: tuple[str, ...]  # names
  table: baselines.Table
  hours: np.ndarray  # [N] latest input time
  events: np.ndarray  # [N] inputs a patient
  begins: np.ndarray  # [N] hour at which the last visit that is shown begins
  after_stay: np.ndarray | None  # [N] inputs later than the end of the stay; None where no source says when stays end
  attrition: tuple[tuple[str, int, str], ...]  # the source's, of which `LATE_STEPS` and `ENDS_EARLY` are shown


@dataclasses.dataclass(frozen=True)
class Terms:
  """How scores are set beside those of the models."""

  window: float  # prediction time in hours, 0 = whole record
  model_auroc: float  # of the best model on the patients that are judged; NaN to compare with none
  seed: int
  unit: str = 'patients'  # what an id names, or 'stays', of which several may be one patient's
  resamples: int = 1000


def audit(shown: Shown, splits: dict[str, np.ndarray], judged: np.ndarray, known: np.ndarray, strays: int,
          terms: Terms) -> list[Check]:
  """Every check of a cohort.

  Args:
    splits: rows by name; what is fitted is fitted on 'train'.
    judged: rows that it is judged on.
    known: rows whose outcomes may be looked at.
    strays: inputs whose statistics are not those of the train patients.
  """
  return [_overlap(shown.subject_id, splits, terms.unit), _normaliser(strays), *_of_cohort(shown, known, terms),
          *_of_scores((shown,), splits['train'], judged, terms)]


def audit_elsewhere(home: Shown, learnt_from: np.ndarray, train: np.ndarray, strays: int, other: Shown,
                    terms: Terms) -> list[Check]:
  """Every check of another cohort: times, dropped rows and ids are its own, what is fitted is fitted at home.

  Args:
    learnt_from: rows of `home` that train or validate, `train` those that train.
    strays: as of `audit`.
    other: on the features of `home`; all of it is judged.
  """
  ids = np.isin(other.subject_id.astype(str), home.subject_id[learnt_from].astype(str))
  known = _count('ids that train or validation patients of the run have too', ids, 'taken for those of others')
  rows = len(home.label) + np.arange(len(other.label))
  return [known, _normaliser(strays), *_of_cohort(other, np.arange(len(other.label)), terms),
          *_of_scores((home, other), train, rows, terms)]


def _of_cohort(shown: Shown, known: np.ndarray, terms: Terms) -> list[Check]:
  """Times against the prediction and the end of the stay, what was dropped as too late, the order of the ids."""
  checks = []
  if terms.window:
    checks.append(_count(f'{terms.unit} with a visit after the prediction time', shown.begins >= terms.window,
                         'inputs are later than the prediction time'))
  if shown.after_stay is not None:
    checks.append(_count(f'{terms.unit} with inputs after the end of their stay', shown.after_stay > 0,
                         'inputs are later than discharge or death, and may tell of it'))
  late = lambda step: step.rpartition(': ')[2] in LATE_STEPS  # behind the name of a table, where a source reads several
  checks += [Check(f'dropped: {step}', float(n), None, '') for step, n, _ in shown.attrition if late(step)]
  checks += [Check(f'kept: {step}', float(n), None, 'where it is the end of a stay, a short record tells the outcome')
             for step, n, _ in shown.attrition if step == ENDS_EARLY]
  return [*checks, _order(shown.subject_id[known], shown.label[known], terms.resamples)]


def _of_scores(parts: tuple[Shown, ...], train: np.ndarray, rows: np.ndarray, terms: Terms) -> list[Check]:
  """Fitted on `train`, judged on `rows`, both of all `parts` one behind the other."""
  joined = lambda get: np.concatenate([np.asarray(get(part), np.float64) for part in parts])
  label, table = joined(lambda p: p.label).astype(int), joined(lambda p: p.table.x)
  checks = [_permuted(table, label, train, rows, terms.seed)]
  for name, columns in (('missingness alone', lambda p: p.table.measured > 0), ('age alone', lambda p: p.age[:, None]),
                        ('record length alone', lambda p: np.stack([p.hours, p.events], 1))):
    prob = baselines.fitted('logistic', joined(columns), label, train, rows, terms.seed)
    checks.append(_judged(name, label[rows], prob, terms.resamples, terms.model_auroc))
  both = baselines.Table(table, parts[0].table.n_features)
  prob = baselines.predict('last_value', both, label, train, rows, terms.seed)
  alone = _judged('last value of one feature alone', label[rows], prob, terms.resamples, terms.model_auroc)
  if alone.warning:
    name = parts[0].features[baselines.best_feature(both.last, label, train)]
    alone = dataclasses.replace(alone, warning=f'{name}: {alone.warning}; is it known before the outcome?')
  return [*checks, alone]


def _overlap(subject_id: np.ndarray, splits: dict[str, np.ndarray], unit: str) -> Check:
  names = list(splits)
  shared = sum(len(np.intersect1d(subject_id[splits[a]], subject_id[splits[b]]))
               for i, a in enumerate(names) for b in names[i + 1:])
  unknown = 'the source names no patients: two stays of one may be in two splits' if unit == 'stays' else ''
  return Check(f'{unit} in two splits', float(shared), None, f'{unit} are in two splits' if shared else unknown)


def _normaliser(strays: int) -> Check:
  return Check('inputs normalised by others than train patients', float(strays), None,
               'statistics know patients that are judged, or are of another cohort' if strays else '')


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


def _permuted(x: np.ndarray, label: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int) -> Check:
  """Mean over permutations: where one axis tells patients apart, a single one lands far from .5 on either side."""
  generator, scores = np.random.default_rng((seed, 101)), []
  for _ in range(PERMUTATIONS):
    permuted = label.copy()
    permuted[train] = generator.permutation(label[train])
    prob = baselines.fitted('logistic', x, permuted, train, test, seed, penalties=baselines.PENALTIES[1:2])
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
