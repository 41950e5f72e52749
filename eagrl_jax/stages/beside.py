"""What stands beside the policies in an evaluation: baselines, the leakage audit, subgroups."""

from __future__ import annotations

import dataclasses

import numpy as np

from eagrl_jax.ehr import splits
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


def audit(context: Context, data: data_lib.Data, probs: dict[str, np.ndarray], rows: np.ndarray) -> list[dict]:
  """The leakage audit as rows of metrics.json; compared with the best of `probs`, the oracle apart."""
  cohort, window = data.cohort, context.config.data.window_hours
  used = cohort.hour < window if window else np.ones(len(cohort.hour), bool)
  counted = lambda which: np.bincount(cohort.patient[which], minlength=len(cohort))
  latest = np.zeros(len(cohort), np.float64)
  np.maximum.at(latest, cohort.patient[used], cohort.hour[used])
  end = cohort.stay_end
  label = cohort.label[rows]
  best = max(metrics.auroc(label, prob) for name, prob in probs.items() if name != 'oracle')
  parts = data.splits
  checks = leakage.audit(
      subject_id=cohort.subject_id, label=cohort.label.astype(int), age=cohort.age, table=table(data), hours=latest,
      events=counted(used), begins=data.visits.hours.max(1) - context.config.data.bin_hours, window=window,
      after_stay=None if end is None else counted(used & (cohort.hour > end[cohort.patient])),
      splits={'train': parts.train, 'valid': parts.valid, 'test': parts.test}, attrition=cohort.attrition,
      model_auroc=best, seed=context.config.seed, unit=splits.kept_apart(context.config.data.source),
      resamples=context.config.evaluate.bootstrap)
  return [dataclasses.asdict(check) for check in checks]


def by_subgroup(context: Context, data: data_lib.Data, probs: dict[str, np.ndarray], rows: np.ndarray
                ) -> dict[str, list[dict]]:
  """AUROC by sex and age band of the policy after RL and of the expert."""
  c = data.cohort
  return {arm: [dataclasses.asdict(row) for row in subgroups.table(
      c.label[rows].astype(int), probs[arm], c.age[rows], c.sex[rows], context.config.evaluate.bootstrap)]
          for arm in ('rl', 'expert')}
