"""Which stays of MIMIC-IV are predicted, when the clock starts and stops, and what the label is.

One stay a patient, the first with intensive care. Two indices:
  icu: the first ICU stay; it starts with its `intime` and is left at its `outtime`.
  hospital: the first admission with an ICU stay, from `admittime` to `dischtime`.
A readmission is another stay of the same index within 30 days of leaving; of the icu index also one in the same
admission. As the question that the policy is asked has it, a death within those 30 days counts as a positive.
Who died before leaving cannot be readmitted and is left out. `dod` is a date: it stands for that day's end. Who is
admitted again after a death, of which either is an error of the records, has no label and is left out too.

Two windows:
  prospective: data of the first `window_hours`, of stays that last at least as long.
  last days: data up to the end of the stay, on calendar days, as published. Of a mortality task it looks back
    from the death; of a readmission task it is what is known on leaving.

New patients have no outcome yet. Their columns of deaths and of leaving are not read, so that nobody is chosen and no
row is seen by them: a prospective window needs the start of the stay alone, and stays of every length are predicted.
The last days before leaving can be shown for a readmission; for mortality they end with the outcome.
"""

from __future__ import annotations

import dataclasses

import duckdb
import numpy as np

from eagrl_jax.ehr.sources import bounded
from eagrl_jax.ehr.sources.bounded import Steps
from eagrl_jax.types import EagrlError

ADMISSIONS = ('subject_id', 'hadm_id', 'admittime', 'dischtime', 'deathtime', 'hospital_expire_flag')
PATIENTS = ('subject_id', 'gender', 'anchor_age', 'anchor_year', 'dod')
ICUSTAYS = ('subject_id', 'hadm_id', 'intime', 'outtime')
_OUTCOME = ('dischtime', 'deathtime', 'hospital_expire_flag', 'dod', 'outtime')  # of all three
_STOP = {'icu': 'outtime', 'hospital': 'dischtime'}
INDICES = ('icu', 'hospital')
_CHARTED_LATE = 6  # hours between a death and the time that the bed is said to be left

_STAYS = {
    'icu': 'SELECT subject_id, hadm_id, moment(intime) AS start, moment(outtime) AS stop, true AS icu FROM icustays',
    'hospital': 'SELECT subject_id, hadm_id, moment(admittime) AS start, moment(dischtime) AS stop, '
                'hadm_id IN (SELECT hadm_id FROM icustays) AS icu FROM admissions',
}
_READMITTED = "next - stop <= INTERVAL 30 DAY"
_DIED_AFTER = "death - stop <= INTERVAL 30 DAY"


@dataclasses.dataclass(frozen=True)
class Task:
  """One label: SQL over the columns of a stay.

  They are start, stop, next (stay's start), last (start of the patient's last stay or admission), died (in hospital),
  death and discharge.
  """

  label: str
  left_out: tuple[tuple[str, str], ...] = ()  # (reason, SQL)
  positives: tuple[tuple[str, str], ...] = ()  # (kind, SQL), counted in the attrition table
  at_end: bool = False  # the outcome is decided when the hospital stay ends


_AFTER_DEATH = ('admitted again after the death: contradictory', 'death < last')
_READMISSION = f'coalesce({_READMITTED}, false) OR coalesce({_DIED_AFTER}, false)'
_KINDS = (('positive: readmitted within 30 days', f'coalesce({_READMITTED}, false)'),
          ('positive: died within 30 days, not readmitted',
           f'coalesce({_DIED_AFTER}, false) AND NOT coalesce({_READMITTED}, false)'))
TASKS = {
    ('mortality', 'icu'): Task('died', at_end=True),
    ('mortality', 'hospital'): Task('died', at_end=True),
    ('readmission', 'hospital'): Task(_READMISSION, (
        ('died before leaving the hospital', 'died'), _AFTER_DEATH), _KINDS),
    ('readmission', 'icu'): Task(_READMISSION, (
        ('died before leaving intensive care', f'died AND death <= stop + INTERVAL {_CHARTED_LATE} HOUR'),
        _AFTER_DEATH), _KINDS),
}


@dataclasses.dataclass(frozen=True)
class Stays:
  """One row a patient, in the order of the table `stays`, which has patient, subject_id, origin, start and cut."""

  ids: list[str]
  age: np.ndarray  # [N] float32, in the year of the stay
  sex: np.ndarray  # [N] int8
  label: np.ndarray  # [N] int8
  end: np.ndarray | None  # [N] float32, hours from `origin` to discharge or death; None where that decides no outcome


def outcome_columns(task: str, index: str, window_hours: float) -> tuple[str, ...]:
  """Columns that are not read of new patients.

  Raises:
    EagrlError: no such task or index, or the outcome ends the window.
  """
  spec = _task(task, index)
  if window_hours:
    return _OUTCOME
  if spec.at_end:
    raise EagrlError('data.window_hours=0: the last days of a stay are counted from its discharge or death, which new '
                     'patients do not have; use a run trained with --config.data.window_hours above 0, such as 48')
  return tuple(c for c in _OUTCOME if c != _STOP[index])  # leaving is when a readmission is predicted, no outcome


def _task(task: str, index: str) -> Task:
  if (task, index) not in TASKS:
    raise EagrlError(f'data.task={task!r} with data.index={index!r} is unknown; choose one of '
                     + ', '.join(f'{t} {i}' for t, i in TASKS))
  return TASKS[task, index]


def choose(db: duckdb.DuckDBPyConnection, task: str, index: str, window_hours: float, steps: Steps,
           labelled: bool = True) -> Stays:
  """Makes the table `stays` out of the tables admissions, patients and icustays.

  Args:
    labelled: False for new patients, whose `outcome_columns` are null: labels are 0.

  Raises:
    EagrlError: no such task or index, repeated patients, no stay left.
  """
  spec = _task(task, index) if labelled else Task('false')
  db.execute('CREATE MACRO moment(x) AS TRY_CAST(x AS TIMESTAMP)')
  repeated = bounded.count(db, 'FROM (SELECT 1 FROM patients GROUP BY subject_id HAVING count(*) > 1)')
  if repeated:
    raise EagrlError(f'data.path: patients lists {repeated} patients twice; get the file again')
  db.execute(f'''
      CREATE TABLE candidates AS
      WITH stay AS ({_STAYS[index]}),
      ahead AS (SELECT *, lead(start) OVER (PARTITION BY subject_id ORDER BY start, stop) AS next,
                  max(start) OVER (PARTITION BY subject_id) AS last_stay FROM stay),
      admitted AS (SELECT subject_id, max(moment(admittime)) AS last FROM admissions GROUP BY subject_id),
      known AS (
        SELECT h.subject_id, h.start, h.stop, h.next, greatest(h.last_stay, admitted.last) AS last,
          moment(a.dischtime) AS discharge,
          a.hospital_expire_flag IN ('1', '1.0') AS died,
          CASE WHEN a.hospital_expire_flag IN ('1', '1.0') THEN coalesce(moment(a.deathtime), moment(a.dischtime))
            ELSE TRY_CAST(left(p.dod, 10) AS DATE) + INTERVAL '23:59:59' END AS death,
          TRY_CAST(p.anchor_age AS DOUBLE) + year(h.start) - TRY_CAST(p.anchor_year AS INTEGER) AS age,
          CASE upper(p.gender) WHEN 'M' THEN 1 WHEN 'F' THEN 0 ELSE -1 END AS sex,
          row_number() OVER (PARTITION BY h.subject_id ORDER BY h.start, h.stop) AS nth
        FROM ahead h JOIN admissions a USING (hadm_id) JOIN patients p ON p.subject_id = h.subject_id
          JOIN admitted ON admitted.subject_id = h.subject_id
        WHERE h.icu)
      SELECT * FROM known''')
  steps.append(('read', bounded.count(db, 'FROM candidates'), 'rows'))
  steps.append((f'not the first {index} stay of a patient', bounded.drop(db, 'candidates', 'nth > 1'), 'rows'))
  steps.append(('read', bounded.count(db, 'FROM candidates'), 'patients'))
  if not (labelled or window_hours or bounded.count(db, 'FROM candidates WHERE stop IS NOT NULL')):
    raise EagrlError(f'data.path: {_STOP[index]} is empty in all stays; the last days are counted from it, fill it in')
  needed = ' OR stop IS NULL OR stop <= start' if labelled or not window_hours else ''
  reasons = [('a time of the stay is missing or out of order', f'start IS NULL{needed}')]
  if labelled:
    reasons += [('alive on discharge yet dead before: contradictory', 'NOT died AND death < discharge'), *spec.left_out]
  if labelled and window_hours:
    reasons.append((f'stay shorter than {window_hours:g} h', f'{_end()} < start + {_hours(window_hours)}'))
  steps += [(reason, bounded.drop(db, 'candidates', condition), 'patients') for reason, condition in reasons]
  steps += [(kind, bounded.count(db, f'FROM candidates WHERE {condition}'), 'patients')
            for kind, condition in spec.positives]
  wrong = bounded.count(db, 'FROM candidates WHERE age < 0 OR age > 120')
  if wrong:
    raise EagrlError(f'data.path: {wrong} patients have an age outside 0 to 120 years; check anchor_age, anchor_year')
  origin, cut = ('start', f'start + {_hours(window_hours)}') if window_hours else ("date_trunc('day', start)", _end())
  db.execute(f'CREATE TABLE stays AS SELECT row_number() OVER (ORDER BY subject_id) - 1 AS patient, subject_id, start, '
             f'{origin} AS origin, {cut} AS cut, age, sex, '
             f'CAST(coalesce({spec.label}, false) AS TINYINT) AS label, '
             'CASE WHEN died THEN least(death, discharge) ELSE discharge END AS gone FROM candidates')
  found = db.execute("SELECT subject_id, coalesce(age, nan) AS age, sex, label, greatest(0, coalesce(date_diff("
                     "'microsecond', origin, gone) / 3.6e9, nan)) AS stay_end FROM "
                     "(SELECT *, CAST('nan' AS DOUBLE) AS nan FROM stays) ORDER BY patient").fetchnumpy()
  if not len(found['label']):
    raise EagrlError('data.path: no stay is left; the attrition would be: '
                     + ', '.join(f'{step} {count}' for step, count, _ in steps))
  return Stays(found['subject_id'].astype(str).tolist(), np.asarray(found['age'], np.float32),
               np.asarray(found['sex'], np.int8), np.asarray(found['label'], np.int8),
               np.asarray(found['stay_end'], np.float32) if spec.at_end else None)


def setting(index: str, window_hours: float) -> str:
  """Who the patients are and what of their stay is shown, for the prompt."""
  stay = {'icu': 'an intensive care stay', 'hospital': 'a hospital stay with intensive care'}[index]
  part = f'first {window_hours:g} hours' if window_hours else 'last days'
  return f'adults in the {part} of {stay}'


def _end() -> str:
  # Of some who died the discharge is noted before the death, and charting goes on after either.
  return 'least(stop, coalesce(death, stop), coalesce(discharge, stop))'


def _hours(hours: float) -> str:
  return f'to_microseconds({round(hours * 3.6e9)})'
