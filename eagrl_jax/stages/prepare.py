"""Makes the cohort that every later stage reads.

1. Read the source; count what is dropped and why. Which features are used and which values look like codes for missing
   is judged over all patients, those of the test split too, without outcomes.
2. Leave out patients with no record in the window.
3. Split by patient, in shares, by a published protocol or as the given split file says.
4. Fit the expert's statistics on train patients alone, and what is usual where a file gave no reference range.
5. Save cohort, splits, statistics, and beside them what was read and not used.
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
from absl import logging
from ml_collections import ConfigDict
from scipy.stats import fisher_exact

from eagrl_jax.ehr import normalise, splits, store, usual, validation
from eagrl_jax.ehr.features import FeatureTable
from eagrl_jax.ehr.records import ENDS_EARLY, Cohort
from eagrl_jax.ehr.sources import (
    csv_text,
    event_rows,
    long_csv,
    meds,
    mimic4,
    outcomes_csv,
    physionet2012,
    synthetic,
    tjh,
    wide_csv,
    yaib,
)
from eagrl_jax.ehr.sources.bounded import Grid
from eagrl_jax.stages import checks, graph, settings
from eagrl_jax.stages.context import Context
from eagrl_jax.stages.data import grid
from eagrl_jax.types import EagrlError

_CHANCE = 1e-3  # p value below which the outcomes of the sexes differ by more than chance


def run(context: Context) -> None:
  c, seed = context.config.data, data_seed(context.config)
  folder = context.folder('prepare')
  cohort = with_records(read_source(c, seed), c.window_hours)
  validation.check(cohort)
  everybody = len(cohort)
  cohort, parts = split(cohort, c, seed)
  if any(stage.name == 'rl' for stage in graph.selected(context.config)):
    checks.patients_a_step(context.config, len(parts.train))  # told now, not when all before it is trained
  visits = grid(cohort, c)
  # The other sources' own tables are looked up in textbooks, which have no normal weight.
  if c.ranges == 'usual' or c.source in ('csv', 'wide_csv') or c.features:
    table = usual.ranges(cohort.features, visits.values, parts.train, replace=c.ranges == 'usual')
    cohort = dataclasses.replace(cohort, features=table)
    if n := sum(spec.usual for spec in table):
      logging.info('%d of %d features are flagged by what is usual among train patients', n, len(table))
  statistics = normalise.fit(visits, parts.train, cohort.features, cohort.age)
  store.save(cohort, folder)
  protocol = c.protocol or (splits.drawn_by(c.splits) if c.splits else '')
  splits.save(folder / 'splits.parquet', parts, cohort.subject_id, protocol if len(cohort) < everybody else '')
  made_of = normalise.origin(store.recorded_sha256(folder), cohort.subject_id[parts.train])
  normalise.save(folder / 'statistics.json', dataclasses.replace(statistics, made_of=made_of))
  logging.info('%s\n%s', cohort.name, attrition_table(cohort))
  if c.source in ('csv', 'wide_csv', 'yaib') and c.sex_codes and (warning := sexes_apart(cohort)):
    logging.warning('%s', warning)
  if warning := ends_early(cohort, c.window_hours):
    logging.warning('%s', warning)
  for name in ('train', 'valid', 'test'):
    label = cohort.label[getattr(parts, name)]
    logging.info('%-5s %5d patients, %.1f %% positive', name, len(label), 100 * label.mean())


def split(cohort: Cohort, c: ConfigDict, seed: int) -> tuple[Cohort, splits.Splits]:
  """Who trains, validates and tests, and the cohort of just those patients."""
  if c.splits:
    path = pathlib.Path(c.splits)
    if name := splits.drawn_by(path):  # the file is of some patients, and says so
      rows = np.flatnonzero(np.isin(cohort.subject_id.astype(str), splits.listed(path)))
      cohort = counted(cohort.take(rows), f'not in the split file, which {name} drew', len(cohort) - len(rows))
    parts = splits.load(path, cohort.subject_id, others=c.source == 'meds')
    splits.check(parts, cohort.label, 'data.splits')
    return counted(cohort, 'of the split file, not in the cohort', splits.outside(path, cohort.subject_id)), parts
  if c.protocol:
    rows = splits.protocol_rows(c.protocol, cohort.label, cohort.subject_id, seed)
    if len(rows) < len(cohort):
      cohort = counted(cohort.take(rows), 'not drawn by the protocol', len(cohort) - len(rows))
    return cohort, splits.by_protocol(c.protocol, cohort.label, cohort.subject_id, seed)
  test = c.test if c.test < 1 else int(c.test)
  return cohort, splits.make_splits(cohort.label, cohort.subject_id, test=test, valid_fraction=c.valid_fraction,
                                    seed=seed)


def counted(cohort: Cohort, step: str, count: int, unit: str = 'patients') -> Cohort:
  """With a step more in the attrition table, where it counts any."""
  return dataclasses.replace(cohort, attrition=(*cohort.attrition, (step, count, unit))) if count else cohort


def data_seed(config: ConfigDict) -> int:
  """The seed of the synthetic cohort and of the splits."""
  return config.seed if config.data.seed is None else config.data.seed


def read_source(c: ConfigDict, seed: int, labelled: bool = True, known: FeatureTable | None = None) -> Cohort:
  """The cohort that `data.source` names.

  Args:
    labelled: False reads new patients of a source whose features are its own: outcomes are neither needed nor read.
      Those of a CSV come by `foreign.read_unlabelled`, in the features of a run.
    known: the features of a run; of sources that average over visits its codes for missing go before.
  """
  if not labelled and c.source in ('synthetic', 'csv', 'wide_csv'):
    raise ValueError(f'read_source: {c.source!r} is not read without outcomes')
  if c.source == 'synthetic':
    return synthetic.generate(settings.synthetic(c), seed)
  if not pathlib.Path(c.path).exists():
    raise EagrlError(f'data.path={c.path!r} does not exist; give the {c.source} file with --config.data.path=')
  if c.source == 'tjh':
    # The published split counts two patients that have nothing but results dated after discharge.
    return tjh.load(c.path, keep_after_discharge=c.get('protocol', '') == 'tjh_140_21_200', labelled=labelled,
                    window_hours=c.window_hours)
  if c.source == 'physionet2012':
    return physionet2012.load(c.path, c.outcomes or None, labelled=labelled)
  visits = Grid(c.bin_hours, c.aggregate, c.window_hours)
  if c.source == 'mimic4':
    return mimic4.load(c.path, task=c.task, index=c.index, grid=visits, labelled=labelled, known=known)
  if c.source == 'meds':
    return meds.load(c.path, c.outcomes, features=c.features or None, grid=visits, task=c.task, setting=c.setting,
                     labelled=labelled, known=known)
  if c.source == 'yaib':
    return yaib.load(c.path, features=c.features or None, grid=visits, task=c.task, setting=c.setting,
                     sex_codes=outcomes_csv.parse_sex_codes(c.sex_codes), labelled=labelled, known=known)
  read = {'csv': long_csv.load, 'wide_csv': wide_csv.load}[c.source]
  return read(c.path, c.outcomes, columns=event_rows.Columns(**c.columns.to_dict()), features=c.features or None,
              task=c.task, setting=c.setting, sex_codes=outcomes_csv.parse_sex_codes(c.sex_codes),
              reading=csv_text.Reading(c.encoding, c.delimiter, c.decimal, c.time_unit), window_hours=c.window_hours)


def with_records(cohort: Cohort, window_hours: float) -> Cohort:
  """Drops patients without any event before `window_hours` (0 = no limit); counts them and the events after it.

  Those events stay in the cohort, where a wider window finds them; no model is shown them.
  """
  inside = np.ones(len(cohort.hour), bool) if not window_hours else cohort.hour < window_hours
  cohort = counted(cohort, 'after the window', int(np.sum(~inside)), 'values')
  rows = np.unique(cohort.patient[inside])
  if len(rows) == len(cohort):
    return cohort
  return counted(cohort.take(rows), 'no record in the window', len(cohort) - len(rows))


def sexes_apart(cohort: Cohort) -> str:
  """A line where the outcome is more than twice as frequent in one sex and chance does not explain it, else ''.

  It may be so. It is also what codes of sex look like that are mapped wrongly, or are not codes of sex.
  """
  counts = np.array([[np.sum((cohort.sex == sex) & (cohort.label == y)) for y in (1, 0)] for sex in (1, 0)])
  rate = counts[:, 0] / np.maximum(counts.sum(1), 1)
  if rate.max() <= 2 * rate.min() or fisher_exact(counts).pvalue >= _CHANCE:
    return ''
  (male, female), (men, women) = counts[:, 0], counts.sum(1)
  return (f'{male} of {men} male and {female} of {women} female patients have the outcome, which chance does not '
          'explain; check data.sex_codes')


def ends_early(cohort: Cohort, window_hours: float) -> str:
  """A line where of some patients nothing may be used from a moment within the window on, else ''."""
  found = sum(n for step, n, _ in cohort.attrition if step == ENDS_EARLY)
  return '' if not found else (
      f'data.columns.until: of {found} patients it lies within data.window_hours={window_hours:g}; where it is the end '
      'of their stay, a short record tells the outcome: leave them out of data.outcomes')


def attrition_table(cohort: Cohort) -> str:
  lines = [f'  {count:8d} {unit:9s} {step}' for step, count, unit in cohort.attrition]
  return '\n'.join([*lines, f'  {len(cohort):8d} patients  in the cohort, {len(cohort.hour)} values'])
