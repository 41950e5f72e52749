"""A finished run on another cohort, with outcomes to judge by: what holds outside the hospital that it was made in.

1. Open the run; read the other cohort and put it on the run's features, units, grid and train statistics. Nothing is
   fitted on it.
2. Its patients are judged by the policies base, sft and rl, by the expert, and by logistic regression and boosting
   that are fitted on the run's train patients.
3. `<workdir>/transfer/<name>/metrics.json`: AUROC, AUPRC and calibration with intervals by patient, paired differences,
   how many features met, the AUROC of the same arms at home, and the leakage audit of the other cohort;
   predictions.parquet, by which a study judges all seeds.

The expert and the baselines are the controls of the policies: they meet the same missing features.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging
from ml_collections import ConfigDict

from eagrl_jax.ehr import splits
from eagrl_jax.ehr.records import Cohort, hashed_order
from eagrl_jax.evaluation import baselines, bootstrap, metrics, provenance, pseudonyms, report
from eagrl_jax.stages import beside, checks, disk, early, fields, finished, foreign, graph, inference, pipeline, prepare
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages import policy as policy_lib
from eagrl_jax.stages.context import Context
from eagrl_jax.stages.parts import FOLDER as PARTS
from eagrl_jax.types import EagrlError

BASELINES = ('logistic', 'boosting')
DATA_SETS = ('tjh', 'physionet2012', 'mimic4', 'synthetic')  # sources of one data set each, with ids of its own
FILES = ('path', 'outcomes', 'features')
PAIRS = (('rl', 'expert'), ('rl', 'base'), ('rl', 'sft'), ('rl', 'logistic'), ('rl', 'boosting'))


def run(config: ConfigDict, workdir: pathlib.Path, dry_run: bool = False) -> None:
  """Entry of `configs/transfer.py`. A dry run reads the other cohort, says what it found and stops."""
  checks.check_transfer(config)
  fields.outside(workdir, config, *(f'data.{name}' for name in FILES))
  c = config.transfer
  with finished.opened(workdir, config.mesh, ('rl', 'expert'), dry_run) as context:
    home = data_lib.load(context)
    if config.data.source == context.config.data.source == 'synthetic' and config.seed == prepare.data_seed(
        context.config):
      raise EagrlError(f'seed={config.seed} is that of the run: the other cohort would be the same synthetic patients, '
                       'measured elsewhere; set another --config.seed=')
    cohort, match = other(config, context, home)
    data = finished.dressed(context, home.cohort, chosen(cohort, c.patients, config.seed))
    label = data.cohort.label
    if reason := metrics.undefined(label.astype(int)):
      raise EagrlError(f'data.path: the {len(label)} patients of the other cohort cannot be judged: {reason}')
    logging.info('%s\n%s', data.cohort.name, prepare.attrition_table(data.cohort))
    print(f'{len(label)} patients of {data.cohort.name}, {100 * label.mean():.1f} % positive; {match.line()}')
    if dry_run:
      return
    made_from = {  # the time's unit came later: a transfer in hours is still the same
        'run': {name: finished.stage_hash(workdir, name)
                for name in (*policy_lib.POLICIES, 'expert', *(['evaluate'] if evaluated(workdir) else []))},
        'data': {k: v for k, v in config.data.to_dict().items() if (k, v) != ('time_unit', 'hours')}
                | dict.fromkeys(FILES, ''),
        'files': [finished.fingerprint(path) for path in (*graph.cohort_files(config.data), config.data.features)
                  if path and config.data.source != 'synthetic'],
        'patients': c.patients, 'seed': config.seed, 'same_patients': c.same_patients,
        'answers': {k: context.config.evaluate[k] for k in ('samples', 'temperature', 'max_new', 'bootstrap')}
                   | graph.new_fields(context.config, 'evaluate')}

    def write(folder: pathlib.Path) -> dict:
      probs, summary = judge(context, home, data, match, splits.kept_apart(config.data.source), folder / PARTS)
      write_predictions(context, data, probs, folder)
      disk.write_json(folder / 'metrics.json', summary)
      print('\n' + report.summary_table(json.loads((folder / 'metrics.json').read_text())))
      return {'attrition': data.cohort.attrition, 'environment': pipeline.environment()}

    folder = finished.publish(workdir, 'transfer', c.name or data.cohort.name, made_from, write)
    logging.info('transfer: %s, report: %s', folder / 'metrics.json', report.write_report(workdir))


def other(config: ConfigDict, context: Context, home: data_lib.Data) -> tuple[Cohort, foreign.Match]:
  """The other cohort on the run's features; patients whom the run has learnt from are left out.

  Raises:
    EagrlError: another task, no feature in common, or ids in common of which nobody says whose they are.
  """
  # Hours, visits and windows are the run's: some sources apply them while they read.
  reading = ConfigDict(config.data.to_dict() | {
      k: context.config.data[k] for k in ('bin_hours', 'max_visits', 'window_hours', 'aggregate')})
  cohort = prepare.read_source(reading, config.seed, known=home.cohort.features)
  if cohort.task != home.cohort.task:
    raise EagrlError(f'data.task={cohort.task!r}: the run was trained for {home.cohort.task!r}; judge it on that')
  return foreign.remap(unseen(cohort, config, context.config.data.source, home), home.cohort.features,
                       context.config.data.window_hours)


def unseen(cohort: Cohort, config: ConfigDict, learnt_from: str, home: data_lib.Data) -> Cohort:
  """Without train and validation patients of the run, wherever ids say who they are.

  Ids of one published data set are those of its patients, whatever is predicted of them; those of two are not. What ids
  of a user's files say, only the user knows.

  Args:
    learnt_from: `data.source` of the run.
  """
  used = np.r_[home.splits.train, home.splits.valid]
  rows = np.flatnonzero(~np.isin(cohort.subject_id.astype(str), home.cohort.subject_id[used].astype(str)))
  shared, source = len(cohort) - len(rows), config.data.source
  same = config.transfer.same_patients
  if same is None and source in DATA_SETS and learnt_from in DATA_SETS:
    same = source == learnt_from != 'synthetic'  # of another seed or site
  if same is None and shared:
    raise EagrlError(f'transfer.same_patients: {shared} ids of the other cohort are also ids of patients that the run '
                     'was trained on; set True to leave those out, or False where ids of two hospitals happen to agree')
  if not same or not shared:
    return cohort
  if not len(rows):
    raise EagrlError('data.path: the run was trained on every patient of this cohort; give another one')
  return prepare.counted(cohort.take(rows), 'train and validation patients of the run', shared)


def chosen(cohort: Cohort, patients: int, seed: int) -> Cohort:
  """All patients, or so many in an order of their ids' hashes."""
  if not patients or patients >= len(cohort):
    return cohort
  kept = cohort.take(hashed_order(cohort.subject_id, f'transfer/{seed}')[:patients])
  return dataclasses.replace(kept, attrition=(*kept.attrition, ('not drawn', len(cohort) - patients, 'patients')))


def judge(context: Context, home: data_lib.Data, data: data_lib.Data, match: foreign.Match, unit: str,
          kept: pathlib.Path | None = None) -> tuple[dict[str, np.ndarray], dict]:
  """Every arm's probabilities `[N]`, and the content of metrics.json.

  Args:
    unit: what ids of the other cohort name, see `splits.kept_apart`.
    kept: as of `inference.answer`.
  """
  rows, n = data.splits.test, context.config.evaluate.bootstrap
  unparsed = data_lib.prevalence(home)
  arms: dict[str, inference.Arm] = {}
  blind = dataclasses.replace(data, cohort=foreign.blinded(data.cohort))
  for name, policy in policy_lib.in_turn(context):
    encoder = data_lib.encoder(context, blind, policy.tokenizer, policy.config)
    encoder.check(rows)
    arms[name] = inference.answer(context, name, encoder, policy, rows, unparsed, kept=kept)
    logging.info('%s: %.1f %% of the answers parsed', name, 100 * arms[name].parsed.mean())
  probs = {name: arm.prob for name, arm in arms.items()} | {'expert': finished.expert_prob(context, blind)}
  probs |= {kind: fitted_at_home(kind, home, data, context.config.seed) for kind in BASELINES}
  label, known = data.cohort.label.astype(int), at_home(context)
  ahead = early.of(context, home, data, rows)
  table: dict[str, dict] = {}
  for name, prob in probs.items():
    table[name] = bootstrap.bootstrap(label, prob, n) | metrics.beside(label, prob) | {
        'auroc_at_home': known.get(name), **(ahead.entry(prob) if ahead else {})}
    if name in arms:
      table[name] |= {'parse_rate': float(arms[name].parsed.mean()), 'refusal_rate': float(arms[name].refused.mean())}
  return probs, {
      'task': data.cohort.task, 'cohort': data.cohort.name, 'trained_on': home.cohort.name, 'n_test': len(rows),
      'n_train': len(home.splits.train), 'prevalence': float(label.mean()), 'unparsed_score': unparsed,
      'mapped_features': len(match.mapped), 'features': dataclasses.asdict(match), 'arms': table,
      'paired': bootstrap.paired_rows(label, probs, PAIRS, n=n), **({'early': ahead.settings()} if ahead else {}),
      'audit': beside.audit_elsewhere(context, home, data, probs, unit)}


def write_predictions(context: Context, data: data_lib.Data, probs: dict[str, np.ndarray],
                      folder: pathlib.Path) -> None:
  """One row an arm and patient, the patients of every arm in the same order."""
  ids = pseudonyms.shown(data.cohort.subject_id, context.workdir, context.config.evaluate.plain_ids)
  label = data.cohort.label.astype(bool)
  pq.write_table(pa.concat_tables(pa.table({
      'subject_id': ids, 'arm': [arm] * len(ids), 'boolean_value': label,
      'predicted_boolean_probability': prob.astype(np.float64)}) for arm, prob in probs.items()),
                 folder / 'predictions.parquet')


def fitted_at_home(kind: str, home: data_lib.Data, data: data_lib.Data, seed: int) -> np.ndarray:
  """A baseline fitted on the run's train patients alone, for every patient of the other cohort. `[N]`"""
  one, two = beside.table(home), beside.table(data)
  both = baselines.Table(np.concatenate([one.x, two.x]), one.n_features)
  rows = len(one.x) + np.arange(len(two.x))
  unseen = np.zeros(len(two.x), home.cohort.label.dtype)  # in place of the other cohort's outcomes
  return baselines.predict(kind, both, np.concatenate([home.cohort.label, unseen]), home.splits.train, rows, seed)


def evaluated(workdir: pathlib.Path) -> bool:
  """Whether the run's own evaluation is finished and of its present policies."""
  return (workdir / 'evaluate' / 'done.json').exists() and 'evaluate' not in provenance.outdated(workdir)


def at_home(context: Context) -> dict[str, dict]:
  """AUROC of the run's own evaluation by arm; empty where it is not `evaluated`."""
  if not evaluated(context.workdir):
    return {}
  arms = json.loads((context.workdir / 'evaluate' / 'metrics.json').read_text())['arms']
  return {name: {k: arm['auroc'][k] for k in ('point', 'ci95')} for name, arm in arms.items()}
