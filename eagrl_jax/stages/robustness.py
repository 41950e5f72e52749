"""Judges base, sft, rl and the expert on test patients whose records, or prompts, are changed.

1. Every policy answers each perturbed record (`evaluation.perturb`) with the same random draws, in batches of one
   shape; the expert predicts the same records. Its channels have no names: moved features meet the wrong ones.
2. The records without the features that a policy named, and with them alone, beside random ones and the expert's.
3. robustness/metrics.json: AUROC and AUPRC of every condition, the paired change from the unchanged records,
   faithfulness, and the agreement of the expert's members; predictions.parquet; the report anew.
"""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging

from eagrl_jax import mesh as mesh_lib
from eagrl_jax import rng
from eagrl_jax.ehr import channels, normalise
from eagrl_jax.ehr.records import Visits
from eagrl_jax.evaluation import bootstrap, faithfulness, metrics, perturb, pseudonyms, report
from eagrl_jax.evaluation.perturb import Condition
from eagrl_jax.expert import salience as salience_lib
from eagrl_jax.expert import train as expert_train
from eagrl_jax.mesh import local_mesh
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages import expert as expert_stage
from eagrl_jax.stages import parts, prepare, settings
from eagrl_jax.stages import policy as policy_lib
from eagrl_jax.stages.context import Context
from eagrl_jax.stages.disk import write_json
from eagrl_jax.stages.encode import Encoder, pad_prompts, parse_rollout
from eagrl_jax.stages.policy import sample
from eagrl_jax.train import processes
from eagrl_jax.train.progress import Progress
from eagrl_jax.types import EagrlError, ExpertBatch

METRICS = ('auroc', 'auprc')
Prompt = tuple[list[int], np.ndarray]  # token ids, the feature of each


@dataclasses.dataclass(frozen=True)
class Said:
  """What one arm said under one condition; an expert always parses."""

  prob: np.ndarray  # [n]
  parsed: np.ndarray  # [n] share of the answers
  named: list[list[int]]  # by the first answer


@dataclasses.dataclass(frozen=True)
class Answered:
  """A batch of `Said`, as it is kept."""

  rows: list[int]
  prob: list[float]
  parsed: list[float]
  named: list[list[int]]


def run(context: Context) -> None:
  c, seed = context.config.robustness, context.config.seed
  data = data_lib.load(context)
  rows = chosen_rows(data.splits.test, c.patients, prepare.data_seed(context.config))
  if reason := metrics.undefined(data.cohort.label[rows].astype(int)):
    raise EagrlError(f'robustness.patients={c.patients}: the test patients that it draws cannot be judged: {reason}; '
                     'draw more, 0 = all, of a test part with both outcomes')
  statistics = normalise.load(context.folder('prepare') / 'statistics.json')
  conditions = perturb.conditions(tuple(c.kinds), c.levels.to_dict(), data.visits.values[rows], rows,
                                  data.cohort.features, statistics, seed,
                                  None if data.visits.censor is None else data.visits.censor[rows])
  said, sets = {}, {}
  for name, policy in policy_lib.in_turn(context):
    said[name], sets[name] = policy_answers(context, name, policy, data, rows, conditions)
  processes.first(lambda: write(context, data, statistics, rows, conditions, said, sets))


def chosen_rows(test: np.ndarray, patients: int, seed: int) -> np.ndarray:
  """Test patients of the stage: all of them, or so many at random. Ascending.

  Args:
    seed: the data's, so that the seeds of a study judge the same patients.
  """
  shuffled = rng.host(seed, 'patients').permutation(test)
  return np.sort(shuffled[:patients or None])


def policy_answers(context: Context, name: str, policy: policy_lib.Policy, data: data_lib.Data, rows: np.ndarray,
                   conditions: list[Condition]) -> tuple[list[Said], dict]:
  """One policy's answers to every condition, and p(without), p(alone) of the sets of faithfulness."""
  encoder = data_lib.encoder(context, data, policy.tokenizer, policy.config)
  prompts = [encode(encoder, rows, condition) for condition in conditions]
  longest = max(len(ids) for prompt in prompts for ids, _ in prompt)
  width = -(-longest // encoder.bucket) * encoder.bucket
  unparsed, kept = data_lib.prevalence(data), context.folder('robustness') / parts.FOLDER / name
  with Progress(f'robustness {name}', (len(conditions) + 6) * len(rows)) as progress:
    ask = lambda prompt, draw, what: answer(context, policy, encoder, prompt, rows, width, draw, unparsed, progress,
                                            kept / what)
    said = [ask(prompt, condition.draw, str(i)) for i, (prompt, condition) in enumerate(zip(prompts, conditions))]
    values = conditions[0].values
    shown = encoder.shown(rows)
    own = faithfulness.named_sets(said[0].named, shown, context.config.reward.top_k)
    salience = expert_stage.load_salience(context)[rows]
    sets = {}
    for kind, chosen in (('own', own), ('random', random_like(context, own, shown, rows)),
                         ('expert', faithfulness.highest(salience * shown, own.sum(1)))):
      tried = {what: encode(encoder, rows, Condition(kind, 0, perturb.only(values, left)))
               for what, left in (('without', ~chosen), ('alone', chosen))}
      sets[kind] = (chosen, *(ask(prompt, 0, f'{what}_{kind}').prob for what, prompt in tried.items()))
  return said, sets


def random_like(context: Context, chosen: np.ndarray, present: np.ndarray, rows: np.ndarray) -> np.ndarray:
  return faithfulness.random_sets(chosen.sum(1), present, rows, context.config.seed)


def encode(encoder: Encoder, rows: np.ndarray, condition: Condition) -> list[Prompt]:
  """The prompts of a condition."""
  worded = dataclasses.replace(encoder, config=dataclasses.replace(encoder.config, wording=condition.wording))
  out = []
  for i, row in enumerate(rows):
    real = encoder.visits.valid[row]
    out.append(worded.tokens(int(row), None if condition.order is None else condition.order[i],
                             condition.values[i][real],
                             None if condition.censor is None else condition.censor[i][real]))
  return out


def answer(context: Context, policy: policy_lib.Policy, encoder: Encoder, prompts: list[Prompt], rows: np.ndarray,
           width: int, draw: int, unparsed: float, progress: Progress, kept: pathlib.Path) -> Said:
  """Mean probability of `robustness.samples` answers a patient; greedy answers are all the same, so one is enough."""
  c = context.config.evaluate
  samples = context.config.robustness.samples if c.temperature > 0 else 1
  width = max(width, -(-max(len(ids) for ids, _ in prompts) // encoder.bucket) * encoder.bucket)
  key = jax.random.fold_in(rng.stage_key(context.config.seed, 'robustness'), draw)
  size = min(c.batch, len(rows))
  prompt_of = dict(zip(rows.tolist(), prompts))

  def work(part: np.ndarray) -> Answered:
    n, full = len(part), np.resize(part, size)  # a last, short batch repeats its rows
    # One width for all conditions: one shape, one compilation.
    batch = pad_prompts([prompt_of[row] for row in full.tolist()], full, encoder.tokenizer.pad_id, width)
    rollout = sample(policy, mesh_lib.shard_batch(context.mesh, batch), key, samples, c.max_new,
                     c.temperature)
    read = parse_rollout(processes.local(rollout), policy.tokenizer, encoder.cohort,
                         max_named=4 * context.config.reward.top_k)
    return Answered(part.tolist(), read.probability(unparsed)[:n].tolist(), read.said.parsed[:n].mean(1).tolist(),
                    [[int(f) for f in ids if f >= 0] for ids in np.asarray(read.said.named)[:n, 0]])

  done = parts.in_turn(kept, Answered, rows, size, work, progress)
  prob, parsed, named = ([x for batch in done for x in getattr(batch, field)] for field in ('prob', 'parsed', 'named'))
  return Said(np.array(prob), np.array(parsed), named)


def expert_input(data: data_lib.Data, statistics: normalise.Statistics, rows: np.ndarray, values: np.ndarray,
                 order: np.ndarray | None = None) -> ExpertBatch:
  """What the expert sees of a condition: normalised as ever, then its features moved as the prompt's lines are."""
  visits = Visits(values, data.visits.hours[rows], data.visits.valid[rows])
  batch = normalise.apply(statistics, visits, data.cohort.take(rows))
  if order is None:
    return batch
  move = lambda x: channels.moved(data.cohort.features, order, x)
  return dataclasses.replace(batch, values=move(batch.values), observed=move(batch.observed))


def write(context: Context, data: data_lib.Data, statistics: normalise.Statistics, rows: np.ndarray,
          conditions: list[Condition], said: dict[str, list[Said]], sets: dict[str, dict]) -> None:
  """The expert's part, the stage's file and the report."""
  config, k = settings.expert(context.config), context.config.reward.top_k
  values = conditions[0].values
  present = np.isfinite(values).any(1)
  with jax.set_mesh(local_mesh(1)):
    params = expert_stage.load_members(context, data)
    predict = lambda shown, order=None: expert_train.predict(
        params, config.model, expert_input(data, statistics, rows, shown, order)).mean(0)
    said = said | {'expert': [Said(predict(c.values, c.order), np.ones(len(rows)), []) for c in conditions]}
    own = faithfulness.highest(expert_stage.load_salience(context)[rows] * present, np.full(len(rows), k))
    tried = {'own': own, 'random': random_like(context, own, present, rows)}
    sets = sets | {'expert': {
        kind: (chosen, predict(perturb.only(values, ~chosen)), predict(perturb.only(values, chosen)))
        for kind, chosen in tried.items()}}
    members = salience_lib.member_salience(params, config.model, expert_input(data, statistics, rows, values),
                                           context.config.expert.salience,
                                           channel_feature=channels.owners(data.cohort.features))
  write_predictions(context, data, rows, conditions, said)
  write_json(context.folder('robustness') / 'metrics.json',
             summarise(context, data, rows, conditions, said, sets, members))
  logging.info('report: %s', report.write_report(context.workdir))


def write_predictions(context: Context, data: data_lib.Data, rows: np.ndarray, conditions: list[Condition],
                      said: dict[str, list[Said]]) -> None:
  """One row a condition, arm and patient."""
  ids = pseudonyms.shown(data.cohort.subject_id[rows], context.workdir, context.config.evaluate.plain_ids)
  label, n = data.cohort.label[rows].astype(bool), len(rows)
  tables = [pa.table({
      'subject_id': ids, 'kind': [condition.kind] * n, 'level': np.full(n, condition.level, np.float64),
      'arm': [arm] * n, 'boolean_value': label,
      'predicted_boolean_probability': answers[i].prob.astype(np.float64),
      'parsed': answers[i].parsed.astype(np.float64)})
            for i, condition in enumerate(conditions) for arm, answers in said.items()]
  pq.write_table(pa.concat_tables(tables), context.folder('robustness') / 'predictions.parquet')


def summarise(context: Context, data: data_lib.Data, rows: np.ndarray, conditions: list[Condition],
              said: dict[str, list[Said]], sets: dict[str, dict], members: np.ndarray) -> dict:
  """The content of metrics.json."""
  n, k, prior = context.config.evaluate.bootstrap, context.config.reward.top_k, data_lib.prevalence(data)
  label = data.cohort.label[rows].astype(int)
  table = []
  for i, condition in enumerate(conditions):
    arms = {}
    for name, answers in said.items():
      scores = bootstrap.bootstrap(label, answers[i].prob, n)
      arms[name] = {m: scores[m] for m in METRICS} | {'parse_rate': float(answers[i].parsed.mean())}
      if i:
        change = bootstrap.paired_difference(label, answers[i].prob, answers[0].prob, n)
        arms[name]['change'] = {m: change[m] for m in METRICS}
    table.append({'kind': condition.kind, 'level': condition.level, **condition.detail, 'arms': arms})
  present = np.isfinite(conditions[0].values).any(1)
  return {
      'n': len(rows), 'prevalence': float(label.mean()), 'unparsed_score': prior, 'top_k': k,
      'samples': context.config.robustness.samples if context.config.evaluate.temperature > 0 else 1,
      'seed': context.config.seed, 'levels': {kind: perturb.WORDS[kind] for kind in perturb.WORDS},
      'unchanged': table[0]['arms'], 'conditions': table[1:],
      'faithfulness': {name: faithfulness.table(said[name][0].prob, found, prior, n) for name, found in sets.items()},
      'member_agreement': faithfulness.member_agreement(members, present, k, n),
      'salience': context.config.expert.salience}
