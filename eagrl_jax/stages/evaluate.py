"""Judges the arms base, sft and rl beside the expert, on test patients.

1. Each policy writes `evaluate.samples` answers a test patient; its probability is their mean
   (self-consistency), an unparsed answer counting as the train prevalence.
2. The features it names, and its own attention while it wrote, are read on the first answer.
3. AUROC, AUPRC, agreement and their controls, all with intervals by patient; scikit-learn's baselines beside them,
   the leakage audit, subgroups.
4. metrics.json, predictions.parquet, cases.json, report.html and the table on the terminal.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging

from eagrl_jax import masked, rng
from eagrl_jax import mesh as mesh_lib
from eagrl_jax.evaluation import agreement, bootstrap, metrics, report
from eagrl_jax.rl.reading import read_attention
from eagrl_jax.stages import beside, cases, settings
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages import expert as expert_stage
from eagrl_jax.stages import policy as policy_lib
from eagrl_jax.stages.context import Context
from eagrl_jax.stages.encode import Encoder, parse_rollout
from eagrl_jax.stages.pipeline import write_json
from eagrl_jax.stages.rl import sample
from eagrl_jax.train import processes
from eagrl_jax.train.progress import Progress


@dataclasses.dataclass(frozen=True)
class Arm:
  """What one policy said about n test patients."""

  prob: np.ndarray  # [n], mean over answers, the train prevalence where unparsed
  parsed: np.ndarray  # [n] share of the answers
  refused: np.ndarray  # [n] share of the answers
  named: list[list[int]]  # by the first answer, as the two below
  attention: np.ndarray  # [n, F] p_LM, rows sum to 1 (0 where no feature list was written)
  text: list[str]


def run(context: Context) -> None:
  c = context.config.evaluate
  data = data_lib.load(context)
  rows = data.splits.test
  arms = {}
  for name in policy_lib.POLICIES:
    policy = policy_lib.load(context.folder(name), context.mesh)
    encoder = data_lib.encoder(context, data, policy.tokenizer)
    arms[name] = answer(context, name, encoder, policy, rows, data_lib.prevalence(data))
    logging.info('%s: %.1f %% of %d answers parsed', name, 100 * arms[name].parsed.mean(), len(rows) * c.samples)
  processes.first(lambda: write(context, data, rows, arms))


def write(context: Context, data: data_lib.Data, rows: np.ndarray, arms: dict[str, Arm]) -> None:
  """Every file of the stage, the report and the table on the terminal."""
  folder = context.folder('evaluate')
  label = data.cohort.label[rows].astype(int)
  probs = {name: arm.prob for name, arm in arms.items()} | {'expert': expert_stage.load_prob(context)[rows]}
  probs |= beside.baseline_probs(context, data, rows)
  if data.cohort.truth is not None:
    probs['oracle'] = data.cohort.truth.risk[rows]

  summary = summarise(context, data, rows, label, arms, probs)
  write_json(folder / 'metrics.json', summary)
  write_predictions(context, data, rows, label, probs)
  shown = cases.choose(arms['rl'].prob, label, context.config.evaluate.cases)
  write_json(folder / 'cases.json', cases.build(data, rows, shown, arms, expert_stage.load_salience(context)))
  path = report.write_report(context.workdir)
  print('\n' + report.summary_table(json.loads((folder / 'metrics.json').read_text())))
  logging.info('report: %s', path)


def answer(context: Context, name: str, encoder: Encoder, policy: policy_lib.Policy, rows: np.ndarray,
           unparsed: float) -> Arm:
  """Answers of one policy, in batches of one size."""
  c, k = context.config.evaluate, context.config.reward.top_k
  size = min(c.batch, len(rows))
  n_features = len(encoder.cohort.features)
  key = rng.stage_key(context.config.seed, 'evaluate')
  attend = functools.partial(read_attention, policy.config, settings.update(context.config), n_features)
  prob, parsed, refused, named, attention, text = [], [], [], [], [], []
  with Progress(f'evaluate {name}', len(rows)) as progress:
    for start in range(0, len(rows), size):
      part = rows[start:start + size]
      full = np.resize(part, size)  # a last, short batch repeats its rows: same shape, no recompile
      prompt = mesh_lib.shard_batch(context.mesh, encoder.batch(full))
      rollout = sample(policy.params, policy, prompt, key, c.samples, c.max_new, c.temperature)
      read = parse_rollout(processes.local(rollout), policy.tokenizer, encoder.cohort, max_named=4 * k)
      first = jax.tree.map(lambda x: x[:, :1], (rollout, jnp.asarray(read.said.align_mask)))
      mass = np.asarray(processes.local(attend(policy.params, prompt, *first)))[:, 0]
      n = len(part)
      prob.append(np.where(read.said.parsed, read.said.prob, unparsed)[:n].mean(1))
      parsed.append(read.said.parsed[:n].mean(1))
      refused.append(read.refused[:n].mean(1))
      named += [[int(f) for f in ids if f >= 0] for ids in np.asarray(read.said.named)[:n, 0]]
      attention.append(mass[:n])
      text += [group[0] for group in read.text[:n]]
      progress.update(n, parsed=float(np.mean(np.concatenate(parsed))))
  join = np.concatenate
  return Arm(join(prob), join(parsed), join(refused), named, join(attention), text)


def summarise(context: Context, data: data_lib.Data, rows: np.ndarray, label: np.ndarray, arms: dict[str, Arm],
              probs: dict[str, np.ndarray]) -> dict:
  """The content of metrics.json."""
  n, k = context.config.evaluate.bootstrap, context.config.reward.top_k
  salience = expert_stage.load_salience(context)[rows]
  truth = data.cohort.truth.salience[rows] if data.cohort.truth is not None else None
  present = data.expert.observed[rows].astype(bool).any(1)
  table: dict[str, dict] = {}
  for name, prob in probs.items():
    table[name] = bootstrap.bootstrap(label, prob, n) | {
        'min_precision_recall': metrics.min_precision_recall(label, prob),
        'calibration_error': metrics.expected_calibration_error(label, prob)}
    if name in arms:
      arm = arms[name]
      wrote = arm.attention.sum(1) > 0
      table[name] |= {
          'parse_rate': float(arm.parsed.mean()), 'refusal_rate': float(arm.refused.mean()),
          'jaccard_at_k': agreement.named_agreement(arm.named, present, k, expert=salience, truth=truth, n=n)}
      if wrote.any():
        table[name]['attention_kl'] = agreement.attention_agreement(
            arm.attention[wrote], salience[wrote], present[wrote], n)
    elif name == 'expert':
      lists = [np.flatnonzero(chosen).tolist() for chosen in masked.top_k(salience, k)]
      table[name]['jaccard_at_k'] = agreement.named_agreement(lists, present, k, expert=salience, truth=truth, n=n)
  pairs = [('rl', 'base'), ('rl', 'sft'), ('sft', 'base'), ('expert', 'rl'), ('boosting', 'rl')]
  return {'task': data.cohort.task, 'cohort': data.cohort.name, 'n_test': len(rows), 'prevalence': float(label.mean()),
          'unparsed_score': data_lib.prevalence(data), 'seed': context.config.seed, 'top_k': k, 'arms': table,
          'paired': bootstrap.paired_rows(label, probs, pairs, n=n),
          'audit': beside.audit(context, data, probs, rows),
          'subgroups': beside.by_subgroup(context, data, probs, rows)}


def hashed_id(subject_id: str, seed: int) -> str:
  """Tells patients apart without naming them; with the cohort at hand the owner can compute it again."""
  return hashlib.sha256(f'predictions/{seed}/{subject_id}'.encode()).hexdigest()[:16]


def write_predictions(context: Context, data: data_lib.Data, rows: np.ndarray, label: np.ndarray,
                      probs: dict[str, np.ndarray]) -> None:
  """One row a patient and arm, with MEDS-evaluation's column names; ids are hashed unless `evaluate.plain_ids`."""
  names = [a for a in probs for _ in rows]
  window = context.config.data.window_hours
  last = data.visits.hours.max(1)[rows]
  time = np.minimum(last, window) if window else last
  prob = np.concatenate([probs[a] for a in probs]).astype(np.float64)
  repeat = len(probs)
  ids = [str(i) for i in data.cohort.subject_id[rows]]
  if not context.config.evaluate.plain_ids:
    ids = [hashed_id(i, context.config.seed) for i in ids]
  table = pa.table({
      'subject_id': ids * repeat,
      'prediction_time': np.tile(time, repeat),  # hours since the patient's first record
      'boolean_value': np.tile(label.astype(bool), repeat),
      'predicted_boolean_value': prob >= 0.5,
      'predicted_boolean_probability': prob,
      'arm': names,
      'split': ['held_out'] * len(names)})
  pq.write_table(table, context.folder('evaluate') / 'predictions.parquet')
