"""Judges the arms base, sft and rl beside the expert, on test patients.

1. Each policy writes `evaluate.samples` answers a test patient; its probability is their mean
   (self-consistency), an unparsed answer counting as the train prevalence. The policies of
   `evaluate.inference_policies` also answer in the other ways of `evaluate.inference` (stages/inference.py).
2. The features it names, and its own attention while it wrote, are read on the first answer.
3. AUROC, AUPRC, agreement and their controls, all with intervals by patient, and the early score where the source knows
   when stays end; scikit-learn's baselines beside them, the leakage audit, subgroups.
4. metrics.json, predictions.parquet, the same for meds-evaluation (stages/meds_predictions.py), reasoning.jsonl with
   what each arm wrote, cases.json, report.html and the table on the terminal.
"""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging

from eagrl_jax import masked
from eagrl_jax.evaluation import agreement, bootstrap, metrics, pseudonyms, report
from eagrl_jax.stages import beside, cases, early, inference, meds_predictions, parts, reasoning
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages import expert as expert_stage
from eagrl_jax.stages import policy as policy_lib
from eagrl_jax.stages.context import Context
from eagrl_jax.stages.disk import write_json
from eagrl_jax.stages.inference import Arm
from eagrl_jax.train import processes


def run(context: Context) -> None:
  c = context.config.evaluate
  data = data_lib.load(context)
  rows = data.splits.test
  unparsed = data_lib.prevalence(data)
  arms: dict[str, Arm] = {}
  others: dict[str, Arm] = {}
  by_layer, kept = None, context.folder('evaluate') / parts.FOLDER
  for name, policy in policy_lib.in_turn(context):
    encoder = data_lib.encoder(context, data, policy.tokenizer, policy.config)
    arms[name] = inference.answer(context, name, encoder, policy, rows, unparsed, kept=kept)
    logging.info('%s: %.1f %% of %d answers parsed', name, 100 * arms[name].parsed.mean(), len(rows) * c.samples)
    if name == 'rl' and c.cases:
      shown = cases.choose(arms[name].prob, data.cohort.label[rows].astype(int), c.cases)
      by_layer = cases.layers(context, encoder, policy, rows[shown], [arms[name].tokens[i] for i in shown])
    if name in c.inference_policies:
      guide = lambda: (expert_stage.load_prob(context), expert_stage.load_salience(context))
      others |= inference.other_ways(context, name, encoder, policy, rows, unparsed, c.inference, guide, kept)
  arms |= others  # behind the three policies wherever arms are listed
  processes.first(lambda: write(context, data, rows, arms, by_layer))


def write(context: Context, data: data_lib.Data, rows: np.ndarray, arms: dict[str, Arm],
          by_layer: np.ndarray | None) -> None:
  """Every file of the stage, the report and the table on the terminal; `by_layer`: of `cases.layers`."""
  folder = context.folder('evaluate')
  label = data.cohort.label[rows].astype(int)
  probs = {name: arm.prob for name, arm in arms.items()} | {'expert': expert_stage.load_prob(context)[rows]}
  probs |= beside.baseline_probs(context, data, rows)
  if data.cohort.truth is not None:
    probs['oracle'] = data.cohort.truth.risk[rows]

  shown = data_lib.encoder(context, data, None).shown(rows)
  summary = summarise(context, data, rows, label, arms, probs, shown)
  write_json(folder / 'metrics.json', summary)
  ids = pseudonyms.shown(data.cohort.subject_id[rows], context.workdir, context.config.evaluate.plain_ids)
  write_predictions(context, data, rows, label, probs, ids)
  reasoning.write(folder / 'reasoning.jsonl', ids, data.cohort.features.names, arms)
  meds_predictions.write(context, data, rows, label, probs)
  shown = cases.choose(arms['rl'].prob, label, context.config.evaluate.cases)
  write_json(folder / 'cases.json', cases.build(data, rows, shown, arms, expert_stage.load_salience(context),
                                                by_layer))
  path = report.write_report(context.workdir)
  print('\n' + report.summary_table(json.loads((folder / 'metrics.json').read_text())))
  logging.info('report: %s', path)


def summarise(context: Context, data: data_lib.Data, rows: np.ndarray, label: np.ndarray, arms: dict[str, Arm],
              probs: dict[str, np.ndarray], shown: np.ndarray) -> dict:
  """The content of metrics.json; `shown [n, F]`: the features that the policies' prompts have."""
  n, k = context.config.evaluate.bootstrap, context.config.reward.top_k
  salience = expert_stage.load_salience(context)[rows]
  truth = data.cohort.truth.salience[rows] if data.cohort.truth is not None else None
  ahead = early.of(context, data, data, rows)
  table: dict[str, dict] = {}
  for name, prob in probs.items():
    table[name] = bootstrap.bootstrap(label, prob, n) | metrics.beside(label, prob) | (
        ahead.entry(prob) if ahead else {})
    if name in arms:
      arm = arms[name]
      wrote = arm.attention.sum(1) > 0
      table[name] |= {
          'parse_rate': float(arm.parsed.mean()), 'refusal_rate': float(arm.refused.mean()),
          'jaccard_at_k': agreement.named_agreement(arm.named, shown, k, expert=salience, truth=truth, n=n),
          'cost': arm.cost, **arm.extra}
      if wrote.any():
        table[name]['attention_kl'] = agreement.attention_agreement(
            arm.attention[wrote], salience[wrote], shown[wrote], n)
    elif name == 'expert':
      lists = [np.flatnonzero(chosen).tolist() for chosen in masked.top_k(salience, k)]
      table[name]['jaccard_at_k'] = agreement.named_agreement(  # it sees all that was measured
          lists, data.measured[rows], k, expert=salience, truth=truth, n=n)
  pairs = [('rl', 'base'), ('rl', 'sft'), ('sft', 'base'), ('expert', 'rl'), ('boosting', 'rl')]
  for name in (arm for arm in arms if '_' in arm):
    pairs += [(name, name.partition('_')[0]), (name, 'expert')]
  return {'task': data.cohort.task, 'cohort': data.cohort.name, 'n_test': len(rows), 'prevalence': float(label.mean()),
          'unparsed_score': data_lib.prevalence(data), 'seed': context.config.seed, 'top_k': k, 'arms': table,
          **({'early': ahead.settings()} if ahead else {}),
          'paired': bootstrap.paired_rows(label, probs, pairs, n=n),
          'audit': beside.audit(context, data, probs),
          'subgroups': beside.by_subgroup(context, data, probs, rows)}


def write_predictions(context: Context, data: data_lib.Data, rows: np.ndarray, label: np.ndarray,
                      probs: dict[str, np.ndarray], ids: list[str]) -> None:
  """One row a patient and arm."""
  names = [a for a in probs for _ in rows]
  time = data_lib.prediction_hours(data, context.config.data.window_hours)[rows]
  prob = np.concatenate([probs[a] for a in probs]).astype(np.float64)
  repeat = len(probs)
  table = pa.table({
      'subject_id': ids * repeat,
      'prediction_time': np.tile(time, repeat),  # hours since the patient's first record
      'boolean_value': np.tile(label.astype(bool), repeat),
      'predicted_boolean_value': prob >= context.config.evaluate.threshold,
      'predicted_boolean_probability': prob,
      'arm': names,
      'split': ['held_out'] * len(names)})
  pq.write_table(table, context.folder('evaluate') / 'predictions.parquet')
