"""Any long CSV, `patient,time,feature,value[,unit]`, with an outcomes CSV, `patient,label[,age,sex]`.

Both may be packed (gz, bz2, zst, lz4). Nothing is guessed: not a unit, not a sex code, not which of two ids or outcomes
is the right one.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from eagrl_jax.ehr import validation
from eagrl_jax.ehr.features import FeatureTable
from eagrl_jax.ehr.records import AFTER_END, ENDS_EARLY, KNOWN_LATE, Cohort, Rejects, hashed_order
from eagrl_jax.ehr.sources import event_rows, outcomes_csv
from eagrl_jax.ehr.sources.csv_text import Reading
from eagrl_jax.ehr.sources.event_rows import SUPERSEDED, Columns, Events
from eagrl_jax.types import EagrlError


@np.errstate(over='ignore')  # what float32 cannot hold becomes infinite, and is counted as not finite
def load(path: str | Path, outcomes: str | Path, *, columns: Columns = Columns(), features: str | Path | None = None,
         name: str = 'csv', task: str = 'mortality', setting: str = 'patients in hospital',
         sex_codes: Mapping[str, int] | None = None, reading: Reading = Reading(), window_hours: float = 0.0) -> Cohort:
  """Reads events and outcomes.

  Args:
    path: events; time is a number of `reading.time_unit` or ISO 8601, all of one kind and one time zone.
    outcomes: one row a patient; label 0/1 or true/false, sex m/f/male/female or `sex_codes`.
    columns: header names.
    features: YAML or JSON list of FeatureSpec fields. Without it every feature name becomes a
      feature without ranges, in the one unit that the file gives for it.
    name, task, setting: see Cohort.
    sex_codes: file's code -> 1 male, 0 female, -1 unknown.
    reading: of both files.
    window_hours: the prediction is made so long after a patient's first row, so that values which become available
      later are not known to it; 0 = from the whole record, up to `until`. Patients whose `until` lies within it are
      counted and kept, for it may be when their prediction is made.

  Returns:
    A validated cohort; hours count from each patient's first row.

  Raises:
    EagrlError: anything that would need a guess, see the module's docstring.
  """
  count: collections.Counter[str] = collections.Counter()
  ids, label, age, sex, until = outcomes_csv.read(
      Path(outcomes), columns, sex_codes or outcomes_csv.SEX, reading, count)
  events = event_rows.read(Path(path), columns, reading, count)
  event_rows.refuse_two_spellings([*ids, *(p for p in events.patients if p not in ids)], columns.field('patient'))
  table, feature_of = event_rows.features_of(events, features, columns)
  value, censor = event_rows.convert(events, table, feature_of, count)

  start = np.full(len(events.patients), np.inf)
  np.minimum.at(start, events.patient, events.hour)
  known = [p for p in ids if p in events.patients]
  row_of = np.full(len(events.patients), -1, np.int32)
  row_of[[events.patients[p] for p in known]] = np.arange(len(known))
  if not known:
    raise EagrlError(f'data.outcomes: no id in {columns.outcome_patient!r} occurs in the events; check both id columns')
  pick = [ids[p] for p in known]
  mine = row_of[events.patient] >= 0
  ends = until.of(events.kinds, columns.field('until'))[pick]
  stay = ends - start[[events.patients[p] for p in known]]
  end = np.where(mine, ends[row_of[events.patient]], np.nan)
  late = events.hour > end
  unknown_yet = event_rows.known_too_late(events, end, start[events.patient], window_hours)
  if late.sum() > validation.OUTSIDE * mine.sum():
    raise EagrlError(f'{columns.field("until")}: {late.sum()} of {mine.sum()} rows lie after it; check that both files '
                     'use one clock, or leave those rows out of the events')
  number = mine & ~np.isnan(value)
  usable = number & ~late & ~unknown_yet
  replaced = event_rows.superseded(events, table, feature_of, value, usable)
  keep = usable & ~replaced
  steps = [('read', len(events.patients), 'patients'), ('read', count['rows'], 'rows'),
           ('without patient, time or feature', count['incomplete'], 'rows'),
           ('without value', count['empty'], 'values'), ('text', count['text'], 'values'),
           ('assay limit written as < or >', count['censored'], 'values'),
           *((step, n, 'values') for step, n in (
               ('level of an ordinal feature written as a word', count['worded']),
               *((step, n) for step, n in count.items() if step.startswith(event_rows.NO_LEVEL)),
               (AFTER_END, int((late & mine).sum())),
               (KNOWN_LATE, int((unknown_yet & mine).sum())),
               (SUPERSEDED, int(replaced.sum()))) if n),
           *((ENDS_EARLY, n, 'patients') for n in [int(np.sum((stay >= 0) & (stay < window_hours)))] if n),
           ('without outcome', len(events.patients) - len(known), 'patients'),
           ('outcome left empty', count['unlabelled'], 'patients'),
           ('outcome without a row', len(ids) - len(known), 'patients')]
  cohort = Cohort(
      name=name, task=task, setting=setting, features=table, subject_id=np.array(known, str),
      age=age[pick].astype(np.float32), sex=sex[pick], label=label[pick], patient=row_of[events.patient][keep],
      hour=(events.hour - start[events.patient])[keep].astype(np.float32),
      feature=feature_of[events.feature][keep].astype(np.int16), value=value[keep].astype(np.float32),
      attrition=tuple(steps), censor=censor[keep])
  wordy = mine & (events.word >= 0) & np.isnan(value)
  leveled = np.array([bool(spec.levels) for spec in table])[feature_of[events.feature]]
  cohort = dataclasses.replace(cohort, rejects=_rejects(
      events, table, feature_of, start, value,
      {'text': wordy & ~leveled, event_rows.NO_LEVEL: wordy & leveled, AFTER_END: late & number,
       KNOWN_LATE: unknown_yet & number, SUPERSEDED: replaced}))
  cohort = validation.validate(cohort.take(hashed_order(cohort.subject_id, name)))
  validation.check(cohort)
  return cohort


def _rejects(events: Events, table: FeatureTable, feature_of: np.ndarray, start: np.ndarray, value: np.ndarray,
             reasons: dict[str, np.ndarray]) -> Rejects:
  ids, names = np.array(list(events.patients), object), np.array(table.names, object)
  rows = np.concatenate([np.flatnonzero(mask) for mask in reasons.values()])
  reason = np.concatenate([np.full(int(mask.sum()), name, object) for name, mask in reasons.items()])
  patient = events.patient[rows]
  return Rejects(ids[patient], (events.hour[rows] - start[patient]).astype(np.float32),
                 names[feature_of[events.feature[rows]]], value[rows].astype(np.float32), reason)
