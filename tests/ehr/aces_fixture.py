"""A MEDS data set of nine made-up patients on which ACES extracts in-hospital death after the first 24 hours."""

from __future__ import annotations

import pathlib

import test_meds

# subject -> hours of admission, and of discharge or death
STAYS = {1: [(0, 60, 'death')], 2: [(0, 100, 'home')], 3: [(0, 50, 'home'), (200, 260, 'death')],
         4: [(0, 20, 'death')],  # within the first 24 hours: ACES leaves it out
         5: [(5, 85, 'home')], 6: [(2, 50, 'death')], 7: [(0, 40, 'home')], 8: [(1, 70, 'death')], 9: [(3, 99, 'home')]}
SILENT = 7  # nothing of it is measured
TASK = """predicates:
  admission: {code: HOSPITAL_ADMISSION}
  discharge: {code: HOSPITAL_DISCHARGE}
  death: {code: MEDS_DEATH}
  discharge_or_death: {expr: "or(discharge, death)"}
trigger: admission
windows:
  input:
    start: NULL
    end: trigger + 24h
    start_inclusive: True
    end_inclusive: True
    index_timestamp: end
  gap:
    start: trigger
    end: start + 24h
    start_inclusive: False
    end_inclusive: True
    has: {admission: "(None, 0)", discharge: "(None, 0)", death: "(None, 0)"}
  target:
    start: gap.end
    end: start -> discharge_or_death
    start_inclusive: False
    end_inclusive: True
    label: death
"""


def events() -> tuple[list[tuple], list[tuple]]:
  """The rows of two shards; a subject stands in one of them, in the order of time."""
  shards: tuple[list[tuple], list[tuple]] = ([], [])
  for subject, stays in STAYS.items():
    rows = [(subject, -8766 * (40 + subject), 'MEDS_BIRTH', None)]
    for start, end, way in stays:
      rows.append((subject, start, 'HOSPITAL_ADMISSION', None))
      rows += [(subject, start + h, 'LAB//220045//bpm', 60 + subject + h) for h in (1, 10, 23, 30)
               if start + h < end and subject != SILENT]
      rows.append((subject, end, 'MEDS_DEATH' if way == 'death' else 'HOSPITAL_DISCHARGE', None))
    shards[subject % 2].extend(rows)
  return shards


def write(folder: pathlib.Path) -> pathlib.Path:
  """The data set in `folder/set/data`, with a features file."""
  return test_meds.make(folder, shards=events())
