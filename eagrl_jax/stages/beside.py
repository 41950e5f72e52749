"""What stands beside the policies in an evaluation: baselines, the leakage audit, subgroups."""

from __future__ import annotations

import dataclasses

import numpy as np

from eagrl_jax.ehr import normalise, splits
from eagrl_jax.evaluation import baselines, leakage, metrics, subgroups
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages.context import Context


def table(data: data_lib.Data) -> baselines.Table:
  return baselines.summarise(data.visits.values, data.visits.valid, data.cohort.age, data.cohort.sex)


def baseline_probs(context: Context, data: data_lib.Data, rows: np.ndarray) -> dict[str, np.ndarray]:
  """Probabilities of `rows` by every baseline, fitted on the train patients."""
  summaries = table(data)
  return {kind: baselines.predict(kind, summaries, data.cohort.label, data.splits.train, rows, context.config.seed)
          for kind in baselines.KINDS}


def audit(context: Context, data: data_lib.Data, probs: dict[str, np.ndarray], part: str = 'test') -> list[dict]:
  """The leakage audit as rows of metrics.json.

  Args:
    probs: of the part's patients; what is judged is compared with the best of them, the oracle apart.
    part: 'test', or 'valid' before the outcomes of test patients may be looked at.
  """
  rows = getattr(data.splits, part)
  known = np.arange(len(data.cohort)) if part == 'test' else np.concatenate([data.splits.train, rows])
  parts = {'train': data.splits.train, 'valid': data.splits.valid, 'test': data.splits.test}
  terms = _terms(context, data, probs, rows, splits.kept_apart(context.config.data.source))
  checks = leakage.audit(_shown(context, data), parts, rows, known, _strays(context, data), terms)
  return [dataclasses.asdict(check) for check in checks]


def audit_elsewhere(context: Context, home: data_lib.Data, data: data_lib.Data, probs: dict[str, np.ndarray],
                    unit: str) -> list[dict]:
  """The same of another cohort, all of whose patients are judged; `unit`: of `splits.kept_apart` of its source."""
  terms = _terms(context, data, probs, data.splits.test, unit)
  learnt_from = np.r_[home.splits.train, home.splits.valid]
  checks = leakage.audit_elsewhere(_shown(context, home), learnt_from, home.splits.train, _strays(context, home),
                                   _shown(context, data), terms)
  return [dataclasses.asdict(check) for check in checks]


def _terms(context: Context, data: data_lib.Data, probs: dict[str, np.ndarray], rows: np.ndarray, unit: str
            ) -> leakage.Terms:
  label = data.cohort.label[rows]
  best = max(metrics.auroc(label, prob) for name, prob in probs.items() if name != 'oracle')
  return leakage.Terms(context.config.data.window_hours, best, context.config.seed, unit,
                       context.config.evaluate.bootstrap)


def _shown(context: Context, data: data_lib.Data) -> leakage.Shown:
  cohort, window = data.cohort, context.config.data.window_hours
  used = cohort.hour < window if window else np.ones(len(cohort.hour), bool)
  counted = lambda which: np.bincount(cohort.patient[which], minlength=len(cohort))
  latest = np.zeros(len(cohort), np.float64)
  np.maximum.at(latest, cohort.patient[used], cohort.hour[used])
  end = cohort.stay_end
  return leakage.Shown(
      subject_id=cohort.subject_id, label=cohort.label.astype(int), age=cohort.age, features=cohort.features.names,
      table=table(data), hours=latest,
      events=counted(used), begins=data.visits.hours.max(1) - context.config.data.bin_hours,
      after_stay=None if end is None else counted(used & (cohort.hour > end[cohort.patient])),
      attrition=cohort.attrition)


def _strays(context: Context, data: data_lib.Data) -> int:
  """Inputs whose statistics, as the run keeps them, are not those of its train patients."""
  kept = normalise.load(context.folder('prepare') / 'statistics.json')
  fitted = normalise.fit(data.visits, data.splits.train, data.cohort.features, data.cohort.age)
  return len(normalise.differing(kept, fitted))


def by_subgroup(context: Context, data: data_lib.Data, probs: dict[str, np.ndarray], rows: np.ndarray
                ) -> dict[str, list[dict]]:
  """AUROC by sex and age band of the policy after RL and of the expert."""
  c = data.cohort
  return {arm: [dataclasses.asdict(row) for row in subgroups.table(
      c.label[rows].astype(int), probs[arm], c.age[rows], c.sex[rows], context.config.evaluate.bootstrap)]
          for arm in ('rl', 'expert')}
