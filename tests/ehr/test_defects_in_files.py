"""What the CSV reader makes of three defects that only a file holds: assay limits, late results, a clock a day ahead.

They are planted in what the synthetic hospital exports. Measured over seeds 0, 1, 2 (200 patients each): 236 of 236
limits, 129 of 129 late results, 149 of 309 rows of a shifted clock. What stays of it are rows that a day does not carry
behind the end of the stay.
"""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from eagrl_jax.ehr.records import AFTER_END, KNOWN_LATE
from eagrl_jax.ehr.sources import long_csv, synthetic
from eagrl_jax.types import EagrlError

LABS = ('lactate', 'creatinine', 'sodium')
LEAVES = 48.0  # hours after the first row, when nobody is measured any more
LAG = 1.5  # mean hours until a laboratory's result is known


class Export:
  """A hospital's events as arrays, to plant in and to read back."""

  def __init__(self, folder, seed):
    self.folder, self.rng = folder, np.random.default_rng(seed)
    self.cohort = c = synthetic.generate(synthetic.SyntheticConfig(n=200, features=('heart rate', *LABS)), seed)
    self.name = np.array(c.features.names)[c.feature]
    self.hour, self.text = c.hour.astype(float), np.array([repr(float(v)) for v in c.value], object)
    self.available = self.hour.copy()
    self.lab = np.isin(self.name, LABS)

  def read(self, window_hours=0.0):
    c, unit = self.cohort, {spec.name: spec.unit for spec in self.cohort.features}
    rows = zip(c.subject_id[c.patient], self.hour, self.name, self.text, [unit[n] for n in self.name], self.available)
    people = ((i, y, LEAVES) for i, y in zip(c.subject_id, c.label))
    for file, header, content in (('events', ('patient', 'time', 'feature', 'value', 'unit', 'available'), rows),
                                  ('outcomes', ('patient', 'label', 'until'), people)):
      with (self.folder / f'{file}.csv').open('w', newline='') as f:
        csv.writer(f).writerows([header, *content])
    (self.folder / 'features.json').write_text(json.dumps(c.features.to_json()))
    found = long_csv.load(self.folder / 'events.csv', self.folder / 'outcomes.csv',
                          features=self.folder / 'features.json', window_hours=window_hours)
    return found, {step: n for step, n, _ in found.attrition}


@pytest.fixture(params=[0, 1, 2])
def export(request, tmp_path):
  return Export(tmp_path, request.param)


def shift_the_laboratory(export, share):
  """Rows of the laboratory of a share of the patients, a day ahead. `[events] bool`"""
  n = len(export.cohort)
  patients = export.rng.choice(n, int(share * n), replace=False)
  planted = export.lab & np.isin(export.cohort.patient, patients)
  export.hour[planted] += 24
  export.available[planted] += 24
  return planted


def test_assay_limits_are_kept_as_limits(export):
  lactate = export.name == 'lactate'
  limit = float(np.quantile(export.cohort.value[lactate], 0.2))
  planted = lactate & (export.cohort.value < limit)
  export.text[planted] = f'<{limit!r}'
  found, count = export.read()
  marked = found.censor == -1
  assert count['assay limit written as < or >'] == marked.sum() == planted.sum() > 20
  assert (found.value[marked] == np.float32(limit)).all() and not (found.censor == 1).any()


def test_results_that_come_after_the_prediction_are_not_used(export):
  export.available[export.lab] += export.rng.exponential(LAG, export.lab.sum())
  planted = (export.hour < 24) & (export.available > 24)
  found, count = export.read(window_hours=24.0)
  assert count[KNOWN_LATE] == planted.sum() > 20
  assert np.sum(found.hour < 24) == np.sum(export.hour < 24) - planted.sum()


def test_of_a_clock_a_day_ahead_what_lies_behind_the_stay_is_found(export):
  planted = shift_the_laboratory(export, 0.05)
  found, count = export.read()
  assert count[AFTER_END] == np.sum(planted & (export.hour > LEAVES))
  assert 0.4 < count[AFTER_END] / planted.sum() < 0.6 and len(found.value) == len(planted) - count[AFTER_END]


def test_a_clock_a_day_ahead_of_many_is_refused(export):
  shift_the_laboratory(export, 0.5)
  with pytest.raises(EagrlError, match=r'data\.columns\.until: \d+ of \d+ rows lie after it; check that both files'):
    export.read()
