"""A finished run's policy on new patients, without outcomes. No stage of the pipeline: a run has many of these.

1. Open the run; its own config decides everything but the data.
2. Read the patients, match their features with the run's, put them on its grid and train statistics.
3. Ask the policy as the evaluation does, and the expert.
4. `<workdir>/predictions/<name>/`: predictions.parquet, reasoning.jsonl, manifest.json. Patient-level: never logged.

No source's outcomes are needed, and where they stand in its files they are not read: they change neither who is seen
nor which rows. MEDS needs a label set for whom to predict and when; mortality of mimic4 needs a run of a prospective
window. A patient's answers depend on its id and record, not on who else is in the file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging
from ml_collections import ConfigDict

from eagrl_jax.ehr.records import Cohort
from eagrl_jax.ehr.sources import event_rows, outcomes_csv
from eagrl_jax.evaluation import pseudonyms
from eagrl_jax.stages import checks, fields, finished, foreign, inference, parts, pipeline, prepare, reasoning
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages import policy as policy_lib
from eagrl_jax.stages.context import Context
from eagrl_jax.types import EagrlError


def run(config: ConfigDict, workdir: pathlib.Path, dry_run: bool = False) -> None:
  """Entry of `configs/predict.py`. A dry run reads the patients, says what it found and stops."""
  checks.check_predict(config)
  fields.outside(workdir, config, 'predict.path', 'predict.statics', 'predict.features')
  c = config.predict
  with finished.opened(workdir, config.mesh, (c.policy, 'expert'), dry_run) as context:
    trained = data_lib.load(context)
    with foreign.speaking_of('predict'):
      cohort, match = read(c, context.config, trained.cohort)
    data = finished.dressed(context, trained.cohort, cohort)
    logging.info('new patients\n%s', prepare.attrition_table(data.cohort))
    if match.lacking:
      logging.info('missing features of the run: %s', ', '.join(match.lacking))
    plain = context.config.evaluate.plain_ids if config.evaluate.plain_ids is None else config.evaluate.plain_ids
    print(f'{len(data.cohort)} patients; {match.line()}')
    if dry_run:
      return
    made_from = {
        'policy': c.policy, 'policy_sha256': finished.fingerprint(workdir / c.policy / 'policy'),
        'expert_sha256': finished.fingerprint(workdir / 'expert' / 'members'),
        'input_sha256': finished.fingerprint(c.path),
        # The time's unit came later: where it is the run's, a prediction of before is still the same.
        'reading': {k: v for k, v in c.to_dict().items() if k != 'features' and (k, v) != ('time_unit', '')}
                   | {'path': '', 'statics': '', 'name': ''},
        'statics_sha256': finished.fingerprint(c.statics) if c.statics else None,
        **({'features_sha256': finished.fingerprint(own)} if (own := feature_file(c, context.config)) else {}),
        'run': finished.stage_hash(workdir, c.policy),
        'answers': {k: context.config.evaluate[k] for k in ('samples', 'temperature', 'max_new')},
        'plain_ids': plain, 'seed': context.config.seed,
        **({} if plain else {'id_salt_sha256': hashlib.sha256(pseudonyms.salt(workdir)).hexdigest()})}
    name = c.name or pathlib.Path(c.path).name.partition('.')[0] or 'new'

    def write(folder: pathlib.Path) -> dict:
      predict(context, folder, data, c.policy, data_lib.prevalence(trained), plain)
      return {'patients': len(data.cohort), 'features': dataclasses.asdict(match),
              'attrition': data.cohort.attrition, 'unparsed_score': data_lib.prevalence(trained),
              'environment': pipeline.environment()}

    folder = finished.publish(workdir, 'predictions', name, made_from, write)
    logging.info('predictions: %s', folder)


def read(c: ConfigDict, own: ConfigDict, trained: Cohort) -> tuple[Cohort, foreign.Match]:
  """The new patients on the run's features. `c`: config.predict, `own`: the run's config."""
  kind = source(c, own)
  d = own.data
  if c.features and kind != 'meds':
    raise EagrlError(f'predict.features: new patients of {kind} bring their own names; leave it empty')
  if kind in foreign.CSV:
    named = {k: v or d.columns[k] for k, v in c.columns.to_dict().items()}
    return foreign.read_unlabelled(
        kind, c.path, c.statics, trained.features, columns=event_rows.Columns(**named),
        sex_codes=outcomes_csv.parse_sex_codes(c.sex_codes or d.sex_codes), encoding=c.encoding or d.encoding,
        delimiter=c.delimiter or d.delimiter, decimal=d.get('decimal', '.'),
        time_unit=c.time_unit or d.get('time_unit', 'hours'), task=trained.task, setting=trained.setting,
        window_hours=d.window_hours)
  if c.statics and kind != 'meds':
    logging.info('predict.statics is not read: new patients of %s need no outcomes', kind)
  layout = ConfigDict(d.to_dict() | {'source': kind, 'path': c.path, 'outcomes': c.statics,
                                     'features': feature_file(c, own)})
  cohort = prepare.read_source(layout, own.seed, labelled=False, known=trained.features)
  return foreign.remap(dataclasses.replace(cohort, task=trained.task, setting=trained.setting), trained.features,
                       d.window_hours)


def feature_file(c: ConfigDict, own: ConfigDict) -> str:
  """The specs by which new patients are read, '' for none: of meds and yaib, in which they name the data's codes."""
  return (c.features or own.data.features) if source(c, own) in ('meds', 'yaib') else ''


def source(c: ConfigDict, own: ConfigDict) -> str:
  """Kind of the new data; a run on synthetic patients takes a CSV."""
  return c.source or ('csv' if own.data.source == 'synthetic' else own.data.source)


def predict(context: Context, folder: pathlib.Path, data: data_lib.Data, policy_name: str, unparsed: float,
            plain_ids: bool) -> None:
  """Asks policy and expert and writes what they say."""
  policy = policy_lib.load(context.folder(policy_name), context.mesh)
  encoder = data_lib.encoder(context, data, policy.tokenizer, policy.config)
  rows, cohort = data.splits.test, data.cohort
  encoder.check(rows)
  arm = inference.answer(context, policy_name, encoder, policy, rows, unparsed, kept=folder / parts.FOLDER,
                         example=draws(cohort.subject_id))
  logging.info('%s: %.1f %% of the answers parsed', policy_name, 100 * arm.parsed.mean())
  ids = pseudonyms.shown(cohort.subject_id, context.workdir, plain_ids)
  pq.write_table(pa.table({
      'subject_id': ids,
      # hours since the patient's first record
      'prediction_time': data_lib.prediction_hours(data, context.config.data.window_hours),
      'predicted_boolean_probability': arm.prob.astype(np.float64), 'parsed': arm.parsed.astype(np.float64),
      'refused': arm.refused.astype(np.float64),
      'expert_probability': finished.expert_prob(context, data).astype(np.float64)}), folder / 'predictions.parquet')
  if not plain_ids:
    logging.info('patients have pseudonyms in these files; --config.evaluate.plain_ids=True shows the source\'s ids')
  reasoning.write(folder / 'reasoning.jsonl', ids, cohort.features.names, {policy_name: arm})


def draws(subject_id: np.ndarray) -> np.ndarray:
  """A number for each patient that its random draws come from, whatever its row. `[N] int32`"""
  return np.array([int(hashlib.sha256(str(i).encode()).hexdigest()[:8], 16) >> 1 for i in subject_id], np.int32)
