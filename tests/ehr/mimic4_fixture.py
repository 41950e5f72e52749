"""A hospital of seven patients in the layout of MIMIC-IV, each with one thing that a loader gets wrong."""

from __future__ import annotations

import datetime
import gzip
import pathlib

START = datetime.datetime(2150, 3, 1, 20, 30)  # of every first ICU stay; admitted two hours before


def at(hours: float) -> str:
  return (START + datetime.timedelta(hours=hours)).isoformat(sep=' ')


def day(hours: float) -> str:
  return at(hours)[:10]


# subject -> (hadm, admitted, discharged, death or None, died in hospital), hours from START
ADMISSIONS = {
    'admissions': [
        (1, 11, -2, 58, 58, 1),  # dies in intensive care
        (2, 21, -2, 200, None, 0),  # back in intensive care in the same admission
        (3, 31, -2, 60, None, 0), (3, 32, 300, 400, None, 0),  # a short ICU stay, back in hospital 10 days after
        (4, 41, -2, 73, None, 0),  # dies at home, on the day of leaving
        (5, 51, -2, 190, 190, 1),  # dies on the ward
        (6, 61, -2, 90, None, 0), (6, 62, 2000, 2100, None, 0),  # well, and back only after months
        (7, 71, -2, 90, None, 0),
    ],
    'icustays': [(1, 11, 0, 58.5), (2, 21, 0, 50), (2, 21, 90, 120), (3, 31, 0, 30), (4, 41, 0, 72), (5, 51, 0, 72),
                 (6, 61, 0, 72), (6, 62, 2001, 2050), (7, 71, 0, 72)],
}
DOD = {1: 58, 4: 73, 5: 190}
# (subject, hour, item, value, valuenum, unit)
CHART = [
    *((s, 1, 220045, '80', '80', 'bpm') for s in (1, 2, 3, 4, 5, 6)),
    (1, 2, 220045, '10000000', '10000000', 'bpm'),
    (1, 3, 223761, '98.6', '98.6', '°F'), (1, 4, 223762, '38', '38', '°C'), (1, 4.5, 226707, '70', '70', 'Inch'),
    (1, 5, 226531, '200', '200', ''), (1, 6, 223835, '0.5', '0.5', ''), (1, 30, 223835, '60', '60', ''),
    (1, 58.2, 220045, '12', '12', 'bpm'),  # after the death, before the bed is left
    (1, 7, 223951, 'Abnormal >3 Seconds', '', ''),
    (1, 8, 220739, 'To Pain', '2', ''), (1, 8, 223901, 'Localizes Pain', '5', ''),
    (1, 8, 223900, 'No Response-ETT', '1', ''),
    (6, 8, 220739, 'Spontaneously', '4', ''), (6, 8, 223901, 'Obeys Commands', '6', ''),
    (6, 8, 223900, 'Confused', '4', ''), (6, 9, 220739, 'To Speech', '3', ''),
    (6, -30, 220045, '99', '99', 'bpm'), (6, 48, 220045, '55', '55', 'bpm'), (6, 2010, 220045, '66', '66', 'bpm'),
    (6, 10, 220734, '6.0', '6.0', 'units'), (6, 11, 999999, 'x', '', ''),
    (7, 1, 220045, 'ERROR', '', 'bpm'),
]
# (subject, hour, stored, item, value, valuenum, unit)
LAB = [
    (1, 10, 11, 50931, '180', '180', 'mg/dL'), (1, 47, 49, 50931, '300', '300', 'mg/dL'),
    (2, 10, 10, 50820, '7.31', '7.31', 'units'), (2, 10, 10, 51491, '6.5', '6.5', 'units'),
]


def write(folder: pathlib.Path, *, zipped: bool = True, chart=(), lab=(), drop: str = '') -> pathlib.Path:
  """Writes the tables; `drop` names a column of chartevents to leave out."""
  header = ['subject_id', 'hadm_id', 'stay_id', 'caregiver_id', 'charttime', 'storetime', 'itemid', 'value', 'valuenum',
            'valueuom', 'warning']
  rows = [[s, '', '', '', at(h), at(h + .1), i, v, n, u, 0] for s, h, i, v, n, u in [*CHART, *chart]]
  keep = [i for i, name in enumerate(header) if name != drop]
  tables = {
      'icu/chartevents': [[r[i] for i in keep] for r in [header, *rows]],
      'hosp/labevents': [
          ['labevent_id', 'subject_id', 'hadm_id', 'specimen_id', 'itemid', 'order_provider_id', 'charttime',
           'storetime', 'value', 'valuenum', 'valueuom', 'ref_range_lower', 'ref_range_upper', 'flag', 'priority',
           'comments'],
          *([k, s, '', k, i, '', at(h), at(t), v, n, u, '', '', '', 'ROUTINE', '"a, quoted ""comment"""']
            for k, (s, h, t, i, v, n, u) in enumerate([*LAB, *lab]))],
      'hosp/admissions': [
          ['subject_id', 'hadm_id', 'admittime', 'dischtime', 'deathtime', 'admission_type', 'hospital_expire_flag'],
          *([s, a, at(i), at(o), '' if d is None else at(d), 'URGENT', f]
            for s, a, i, o, d, f in ADMISSIONS['admissions'])],
      'hosp/patients': [
          ['subject_id', 'gender', 'anchor_age', 'anchor_year', 'anchor_year_group', 'dod'],
          *([s, 'MF'[s % 2], 50 + s, 2148, '2011 - 2013', day(DOD[s]) if s in DOD else ''] for s in range(1, 8))],
      'icu/icustays': [
          ['subject_id', 'hadm_id', 'stay_id', 'first_careunit', 'last_careunit', 'intime', 'outtime', 'los'],
          *([s, a, 900 + k, 'MICU', 'MICU', at(i), at(o), (o - i) / 24]
            for k, (s, a, i, o) in enumerate(ADMISSIONS['icustays']))],
  }
  for name, table in tables.items():
    path = folder / f'{name}.csv{".gz" if zipped else ""}'
    path.parent.mkdir(parents=True, exist_ok=True)
    content = ''.join(','.join(map(str, row)) + '\n' for row in table).encode()
    path.write_bytes(gzip.compress(content) if zipped else content)
  return folder
