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
from collections.abc import Iterator, Mapping

import numpy as np

from eagrl_jax.ehr import concepts, units, validation
from eagrl_jax.ehr.features import FeatureTable, canonical
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
  it, so a pressure by a cuff only where its table has no other (`stand_in`: or the patient).
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
def remap(cohort: Cohort, table: FeatureTable) -> tuple[Cohort, Match]:
  """A cohort on another feature table, see `meet`, in its units and within its hard ranges.

  A unit is converted where either table or `ehr.units` says how. A value without a unit is taken to be in the run's, as
  by every source. Levels that the run numbers otherwise go by their words; what is none of them is missing.

  Raises:
    EagrlError: nothing is mapped.
  """
  chosen = meet(cohort.features, table)
  cohort, stood_in = stand_in(cohort, chosen)
  change = {i: units.conversion(cohort.features[f], table[i]) for i, f in chosen.items()}
  levels = {i: units.levels(cohort.features[f], table[i]) for i, f in chosen.items()}
  mapped = [i for i in sorted(chosen) if change[i] is not None and levels[i] is not None]
  foreign_units = tuple(table[i].name for i in sorted(chosen) if i not in mapped)
  match = Match(tuple(table[i].name for i in mapped),
                tuple(s.name for i, s in enumerate(table) if i not in mapped),
                len(cohort.features) - len(chosen) - stood_in, foreign_units)
  if not mapped:
    reason = f', {len(foreign_units)} for their units or levels' if foreign_units else ''
    raise EagrlError(f'data.path: none of its {len(cohort.features)} features is one of the {len(table)} of the run'
                     f'{reason}; check names and units')
  to = np.full(len(cohort.features), -1, np.int16)
  scale, offset = np.ones((2, len(cohort.features)))
  for i in mapped:
    to[chosen[i]] = i
    scale[chosen[i]], offset[chosen[i]] = change[i] or (1.0, 0.0)
  value = cohort.value.astype(np.float64)
  for i in mapped:
    if by_word := levels[i]:
      mine = cohort.feature == chosen[i]
      value[mine] = _renumbered(cohort.value[mine], by_word)
  no_level = np.isnan(value)
  steps = ((NO_LEVEL, int(no_level.sum()), 'values'),) if no_level.any() else ()
  keep = (to[cohort.feature] >= 0) & ~no_level
  source = cohort.feature[keep]
  cohort = dataclasses.replace(
      cohort, features=table, truth=None, attrition=(*cohort.attrition, *steps),
      patient=cohort.patient[keep], hour=cohort.hour[keep], feature=to[source],
      value=(scale[source] * value[keep] + offset[source]).astype(np.float32),
      censor=None if cohort.censor is None else (np.sign(scale[source]) * cohort.censor[keep]).astype(np.int8))
  # Its source has looked for contradictions, and judged its features where they are judged.
  return validation.validate(cohort, at_one_time=False, judge_features=False), match


def stand_in(cohort: Cohort, chosen: Mapping[int, int]) -> tuple[Cohort, int]:
  """Gives patients without the feature that stands for a concept the values of the next one that they have.

  Args:
    chosen: of `meet`; a feature that the run has too stays what it is.

  Returns:
    The cohort and how many features stand in for another.
  """
  feature, value, used = cohort.feature.copy(), cohort.value.copy(), set()
  for spellings in concepts.CONCEPTS:
    mine = concepts.in_order(cohort.features, spellings)
    first = next((f for f in mine if f in chosen.values()), None)
    if first is None:
      continue
    for other in (f for f in mine if f not in chosen.values()):
      change = units.conversion(cohort.features[other], cohort.features[first])
      with_first = np.isin(cohort.patient, cohort.patient[feature == first])
      moved = (feature == other) & ~with_first
      if change is not None and moved.any():
        feature[moved], value[moved] = first, change[0] * value[moved].astype(np.float64) + change[1]
        used.add(other)
  if not used:
    return cohort, 0
  step = (STOOD_IN, int((feature != cohort.feature).sum()), 'values')
  return dataclasses.replace(cohort, feature=feature, value=value, attrition=(*cohort.attrition, step)), len(used)


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
