"""Every source of a user's own data, through the config as `prepare` reads it."""

from __future__ import annotations

import mimic4_fixture
import numpy as np
import pytest
import test_meds
import test_wide_csv
import test_yaib

from configs import defaults
from eagrl_jax.stages import prepare


def mimic4(folder, data):
  data.path = str(mimic4_fixture.write(folder))


def meds(folder, data):
  test_meds.make(folder)
  data.update(path=str(folder / 'set'), outcomes=str(folder / 'labels'), features=str(folder / 'features.yaml'))


def yaib(folder, data):
  data.path = str(test_yaib.make(folder))


def wide_csv(folder, data):
  path, outcomes = test_wide_csv.make(folder)
  data.update(path=str(path), outcomes=str(outcomes), features=str(folder / 'f.yaml'))


@pytest.mark.parametrize(('variant', 'write', 'window', 'labels'), [
    ('mimic4', mimic4, None, [0, 0, 0, 1, 1]), ('mimic4_last_days', mimic4, None, [0, 0, 0, 0, 1, 1]),
    ('mimic4_readmission', mimic4, None, [0, 0, 1, 1, 1]), ('mimic4_readmission48', mimic4, None, [0, 1, 1, 1]),
    ('meds', meds, 0.0, [0, 0, 1]), ('yaib', yaib, None, [0, 1]), ('wide_csv', wide_csv, None, [0, 1])])
def test_a_config_becomes_a_cohort(variant, write, window, labels, tmp_path):
  data = defaults.get_config(variant).data
  write(tmp_path, data)
  if window is not None:
    data.window_hours = window
  cohort = prepare.with_records(prepare.read_source(data, seed=0), data.window_hours)
  assert sorted(cohort.label.tolist()) == labels and cohort.task == data.task
  table = prepare.attrition_table(cohort)
  assert 'read' in table and f'{len(cohort):8d} patients  in the cohort' in table
  assert np.isfinite(cohort.value).all()
