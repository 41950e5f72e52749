"""Patients that a run has never seen, in the terms of its own features and units.

They come from a CSV without outcomes (`read_unlabelled`) or as a cohort of any source (`remap`); both end with the
run's feature table, so that the renderer, the train statistics and the expert take them for its own.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from eagrl_jax.ehr import concepts, units, validation
from eagrl_jax.ehr.features import FeatureSpec, FeatureTable, canonical
from eagrl_jax.ehr.records import KNOWN_LATE, Cohort, hashed_order
from eagrl_jax.ehr.sources import csv_text, event_rows, outcomes_csv, wide_csv
from eagrl_jax.types import EagrlError

CSV = ('csv', 'wide_csv')
STOOD_IN = 'of patients without the usual feature of their kind, taken for it'  # of a cuff, say
NO_LEVEL = 'no level of the run, which numbers the feature otherwise'


@dataclasses.dataclass(frozen=True)
class Match:
  """How a source's features met the run's; the names are the run's own."""

  mapped: tuple[str, ...]
  lacking: tuple[str, ...]  # of the run: missing data
  unknown: int  # of the source, ignored
  units: tuple[str, ...] = ()  # in both, but in units or levels that nothing converts: missing data as well

  def line(self) -> str:
    """Counts alone."""
    return (f'{len(self.mapped)} of {len(self.mapped) + len(self.lacking)} features of the run are in the data, '
            f'{len(self.lacking)} are missing'
            + (f' ({len(self.units)} for their units or levels)' if self.units else '')
            + f'; {self.unknown} of the data are unknown to the run and ignored')


def meet(features: FeatureTable, table: FeatureTable) -> dict[int, int]:
  """Feature of a run's table -> the feature of another that is the same: by name, else alias, else `ehr.concepts`.

  Of two that mean the same one, that of the same name is used, else the first; for a concept, the one that stands for
  it, so a pressure by a cuff only where its table has no other (`stand_ins`: or the patient).
  """
  chosen: dict[int, int] = {}
  own = {canonical(spec.name): i for i, spec in enumerate(table)}
  same = [own.get(canonical(spec.name)) for spec in features]
  by_name = [table.find(spec.name) for spec in features]
  by_alias = [next((i for a in spec.aliases if (i := table.find(a)) is not None), None) for spec in features]
  for found in (same, by_name, by_alias):
    for f, i in enumerate(found):
      if i is not None and f not in chosen.values():
        chosen.setdefault(i, f)
  for spellings in concepts.CONCEPTS:
    theirs, ours = concepts.find(features, spellings), concepts.find(table, spellings)
    if theirs is not None and ours is not None and theirs not in chosen.values():
      chosen.setdefault(ours, theirs)
  return chosen


@np.errstate(over='ignore')  # what float32 cannot hold becomes infinite, and is counted as not finite
def remap(cohort: Cohort, table: FeatureTable, window_hours: float = 0.0) -> tuple[Cohort, Match]:
  """A cohort on another feature table, see `meet`, in its units and within its hard ranges.

  A unit is converted where either table or `ehr.units` says how. A value without a unit is taken to be in the run's, as
  by every source. Levels that the run numbers otherwise go by their words; what is none of them is missing. Patients
  without the feature that stands for a concept in the window bring the next one that they have, see `stand_ins`.

  Args:
    window_hours: of the run; 0 = the whole record.

  Raises:
    EagrlError: nothing is mapped.
  """
  chosen = meet(cohort.features, table)
  readings = {f: reading for i, f in chosen.items() if (reading := _reading(cohort.features[f], table[i]))}
  mapped = [i for i in sorted(chosen) if chosen[i] in readings]
  foreign_units = tuple(table[i].name for i in sorted(chosen) if i not in mapped)
  others = {f: i for f, i in stand_ins(cohort.features, table, chosen).items() if i in mapped}
  readings |= {f: reading for f, i in others.items() if (reading := _reading(cohort.features[f], table[i]))}
  others = {f: i for f, i in others.items() if f in readings}
  match = Match(tuple(table[i].name for i in mapped),
                tuple(s.name for i, s in enumerate(table) if i not in mapped),
                len(cohort.features) - len(chosen) - len(others), foreign_units)
  if not mapped:
    reason = f', {len(foreign_units)} for their units or levels' if foreign_units else ''
    raise EagrlError(f'data.path: none of its {len(cohort.features)} features is one of the {len(table)} of the run'
                     f'{reason}; check names and units')
  to = np.full(len(cohort.features), -1, np.int16)
  scale, offset = np.ones((2, len(cohort.features)))
  value = cohort.value.astype(np.float64)
  for f, i in {chosen[i]: i for i in mapped}.items() | others.items():
    to[f] = i
    (scale[f], offset[f]), by_word = readings[f]
    if by_word:
      mine = cohort.feature == f
      value[mine] = _renumbered(cohort.value[mine], by_word)
  no_level = np.isnan(value)
  second, first = _stand(cohort, to, list(others), window_hours)
  steps = tuple((step, n, 'values') for step, n in ((NO_LEVEL, int(no_level.sum())), (STOOD_IN, int(first.sum()))) if n)
  keep = (to[cohort.feature] >= 0) & ~no_level & ~second
  source = cohort.feature[keep]
  cohort = dataclasses.replace(
      cohort, features=table, truth=None, attrition=(*cohort.attrition, *steps),
      patient=cohort.patient[keep], hour=cohort.hour[keep], feature=to[source],
      value=(scale[source] * value[keep] + offset[source]).astype(np.float32),
      censor=None if cohort.censor is None else (np.sign(scale[source]) * cohort.censor[keep]).astype(np.int8))
  # Its source has looked for contradictions, and judged its features where they are judged.
  return validation.validate(cohort, at_one_time=False, judge_features=False), match


def _reading(spec: FeatureSpec, to: FeatureSpec) -> tuple[tuple[float, float], dict[float, float]] | None:
  """((scale, offset), level -> level) from a feature to one of the run; None where nothing converts it."""
  change, levels = units.conversion(spec, to), units.levels(spec, to)
  return None if change is None or levels is None else (change, levels)


def stand_ins(features: FeatureTable, table: FeatureTable, chosen: Mapping[int, int]) -> dict[int, int]:
  """Feature of another table -> the run's of the same concept, though another one stands for that: a cuff's pressure.

  A feature that the run has too is itself and stands for nothing else.
  """
  out: dict[int, int] = {}
  for spellings in concepts.CONCEPTS:
    ours = concepts.find(table, spellings)
    mine = concepts.in_order(features, spellings)
    if ours is not None and chosen.get(ours) in mine:
      out |= {f: ours for f in mine if f not in chosen.values()}
  return out


def _stand(cohort: Cohort, to: np.ndarray, others: Sequence[int], window_hours: float) -> tuple[np.ndarray, np.ndarray]:
  """Values of `others` that are not used, because their patient has what they stand for, and those that are. `[values]`

  What is measured behind the window says nothing of what is shown: it neither is used nor keeps another from it.
  """
  inside = cohort.hour < window_hours if window_hours else np.ones(len(cohort.hour), bool)
  unused, used = np.zeros((2, len(cohort.hour)), bool)
  for n, f in enumerate(others):
    first = [g for g in np.flatnonzero(to == to[f]) if g not in others[n:]]  # of its concept, in front of it
    has_first = cohort.patient[np.isin(cohort.feature, first) & inside & ~unused]
    mine = cohort.feature == f
    unused |= mine & np.isin(cohort.patient, has_first)
    used |= mine & ~unused & inside
  return unused, used


def _renumbered(value: np.ndarray, levels: dict[float, float]) -> np.ndarray:
  """Levels as the run numbers them; NaN for what is none, as a mean over a visit may be."""
  out = np.full(len(value), np.nan)
  for level, own in levels.items():
    out[value == np.float32(level)] = own
  return out


def blinded(cohort: Cohort) -> Cohort:
  """Without what only the past knows: outcomes become 0 for all, the end of stays and the truth of a simulation go."""
  return dataclasses.replace(cohort, label=np.zeros(len(cohort), np.int8), truth=None, stay_end=None)


@np.errstate(over='ignore')  # what float32 cannot hold becomes infinite, and is counted as not finite
def read_unlabelled(kind: str, path: str, statics: str, table: FeatureTable, *, columns: event_rows.Columns,
                    sex_codes: dict[str, int] | None, encoding: str, delimiter: str, task: str,
                    setting: str, decimal: str = '.', time_unit: str = 'hours',
                    window_hours: float = 0.0) -> tuple[Cohort, Match]:
  """Reads a long or wide CSV or parquet file without outcomes, as `long_csv.load` reads one with them.

  Args:
    kind: 'csv' or 'wide_csv'.
    statics: a CSV of patient, age and sex; '' = neither is known. Any other column of it, an outcome too, is not read.
    table: the run's features.
    window_hours: of the run, as of `long_csv.load`.

  Returns:
    A validated cohort whose labels are 0, in an order of the ids' hashes.

  Raises:
    EagrlError: what `long_csv.load` refuses, or no known feature. It names fields of `config.data`.
  """
  count: collections.Counter[str] = collections.Counter()
  reading = csv_text.Reading(encoding, delimiter, decimal, time_unit)
  with _as_long(kind, pathlib.Path(path), columns, reading) as (file, columns):
    events = event_rows.read(file, columns, reading, count)
  event_rows.refuse_two_spellings(list(events.patients), columns.field('patient'))
  found = {code: table.find(name) for name, code in events.features.items()}
  feature_of = np.array([-1 if found[code] is None else found[code] for code in range(len(found))], np.int32)
  if (feature_of < 0).all():
    raise EagrlError(f'data.path: none of the {len(found)} names in the column {columns.feature!r} is one of the '
                     f'{len(table)} features of the run; check the file and --config.data.columns.feature')
  start = np.full(len(events.patients), np.inf)
  np.minimum.at(start, events.patient, events.hour)
  known = feature_of[events.feature] >= 0
  events = dataclasses.replace(events, **{f: getattr(events, f)[known] for f in (
      'patient', 'feature', 'unit', 'word', 'hour', 'available', 'value', 'censor')})
  value, censor = event_rows.convert(events, table, feature_of, count)
  late = ~np.isnan(value) & event_rows.known_too_late(
      events, np.full(len(value), np.nan), start[events.patient], window_hours)
  keep = ~np.isnan(value) & ~late
  replaced = event_rows.superseded(events, table, feature_of, value, keep)
  keep &= ~replaced
  ids = np.array(list(events.patients), str)
  age, sex = read_statics(statics, ids, columns, sex_codes, reading)
  steps = (('read', len(ids), 'patients'), ('read', count['rows'], 'rows'),
           ('without patient, time or feature', count['incomplete'], 'rows'),
           ('of a feature that the run does not know', int((~known).sum()), 'values'),
           ('without value', count['empty'], 'values'), ('text', count['text'], 'values'),
           ('assay limit written as < or >', count['censored'], 'values'),
           *((step, n, 'values') for step, n in (
               *((step, n) for step, n in count.items() if step.startswith(event_rows.NO_LEVEL)),
               (KNOWN_LATE, int(late.sum())), (event_rows.SUPERSEDED, int(replaced.sum()))) if n))
  cohort = Cohort(
      name='new', task=task, setting=setting, features=table, subject_id=ids, age=age, sex=sex,
      label=np.zeros(len(ids), np.int8), patient=events.patient[keep],
      hour=(events.hour - start[events.patient])[keep].astype(np.float32),
      feature=feature_of[events.feature][keep].astype(np.int16), value=value[keep].astype(np.float32), attrition=steps,
      censor=censor[keep])
  cohort = validation.validate(cohort.take(hashed_order(ids, cohort.name)), judge_features=False)
  present = {int(f) for f in feature_of if f >= 0}
  return cohort, Match(tuple(s.name for i, s in enumerate(table) if i in present),
                       tuple(s.name for i, s in enumerate(table) if i not in present), int((feature_of < 0).sum()))


@contextlib.contextmanager
def _as_long(kind: str, path: pathlib.Path, columns: event_rows.Columns,
             reading: csv_text.Reading) -> Iterator[tuple[pathlib.Path, event_rows.Columns]]:
  """The file itself, or a wide one melted."""
  if kind == 'csv':
    yield path, columns
    return
  columns = dataclasses.replace(columns, feature='feature', value='value', unit='unit')
  with tempfile.TemporaryDirectory(prefix='cohort-') as folder:
    melted = pathlib.Path(folder) / wide_csv.unpacked_name(path)
    wide_csv.melt(path, melted, columns, reading)
    yield melted, columns


def read_statics(path: str, ids: np.ndarray, columns: event_rows.Columns, sex_codes: dict[str, int] | None,
                 reading: csv_text.Reading) -> tuple[np.ndarray, np.ndarray]:
  """Age `[N]` in years, NaN unknown, and sex `[N]`, -1 unknown, of these patients.

  Raises:
    EagrlError: no such columns, no id of these patients, an id twice or in two spellings, an age that is no number or
      impossible, an unknown sex code.
  """
  age, sex = np.full(len(ids), np.nan, np.float32), np.full(len(ids), -1, np.int8)
  if not path:
    return age, sex
  who, years, codes, _ = outcomes_csv.people(
      pathlib.Path(path), 'data.statics', columns, sex_codes or outcomes_csv.SEX, reading, {})
  if len(set(who)) != len(who):
    raise EagrlError(f'data.statics: {len(who) - len(set(who))} patients are listed twice; keep one row each')
  wrong = int(np.sum((years < 0) | (years > 120)))
  if wrong:
    raise EagrlError(f'data.statics: {wrong} entries of {columns.age!r} are not years from 0 to 120; correct them')
  mine = set(map(str, ids))
  event_rows.refuse_two_spellings([*mine, *(p for p in who if p not in mine)], columns.field('outcome_patient'))
  row = {patient: i for i, patient in enumerate(who)}
  known = np.flatnonzero([str(patient) in row for patient in ids])
  if not len(known):
    raise EagrlError(f'data.statics: no id in {columns.outcome_patient!r} occurs in the data; check both id columns')
  at = np.array([row[str(ids[i])] for i in known])
  age[known], sex[known] = years[at], codes[at]
  return age, sex


@contextlib.contextmanager
def speaking_of(section: str) -> Iterator[None]:
  """The readers name fields of `config.data`; here the same fields are those of another section, but for the run's."""
  try:
    yield
  except EagrlError as e:
    text = str(e).replace('data.outcomes', 'data.statics')
    files = 'csv|tsv|txt|gz|tar|xlsx|parquet'  # a file may be called data.csv
    own = 'window_hours'  # only the run's config says it
    raise EagrlError(
        re.sub(rf'(?<![\w.])(config\.)?data\.(?!{files})(?!{own}\b)(?=[a-z])', rf'\1{section}.', text)) from e
