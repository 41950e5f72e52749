"""No id and no measured value reaches what is meant to be seen: terminal, logs, TensorBoard, shared report, card."""

import contextlib
import csv
import io
import logging
import re

import numpy as np
import pytest
from absl import logging as absl_logging

from eagrl_jax.evaluation import pseudonyms, report
from eagrl_jax.mesh import make_mesh
from eagrl_jax.stages import export, pipeline
from eagrl_jax.stages.context import Context

ID = 'canary-patient-'
VALUE = re.compile(r'(?<![\w.])77[1-9]\d{3}(?!\w)')  # every value of the planted feature is one of these


def write(path, header, rows):
  with path.open('w', newline='') as f:
    csv.writer(f).writerows([header, *rows])
  return str(path)


@pytest.fixture(scope='module')
def run(tmp_path_factory, micro_config):
  """A whole run on a cohort of canaries: its folder, and all that it said."""
  folder = tmp_path_factory.mktemp('canaries')
  r = np.random.default_rng(0)
  c = micro_config('csv')
  patients = [f'{ID}{i:03d}' for i in range(60)]
  events = [(p, hour, name, value) for p in patients for hour in (0, 30) for name, value in (
      ('ferritin', int(r.integers(771000, 780000))), ('lactate', round(float(r.normal(3, 1)), 1)))]
  c.data.path = write(folder / 'events.csv', ('patient', 'time', 'feature', 'value'), events)
  c.data.outcomes = write(folder / 'outcomes.csv', ('patient', 'label', 'age', 'sex'),
                          [(p, i % 2, 40 + i % 30, 'fm'[i % 3 == 0]) for i, p in enumerate(patients)])
  c.data.test = 0.4
  c.rl.update(validate_every=1, keep='auroc')
  said = io.StringIO()
  handler = logging.StreamHandler(said)
  absl_logging.get_absl_logger().addHandler(handler)
  level = absl_logging.get_verbosity()
  absl_logging.set_verbosity(absl_logging.INFO)
  try:
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
      pipeline.run(c, folder / 'w')
  finally:
    absl_logging.set_verbosity(level)
    absl_logging.get_absl_logger().removeHandler(handler)
  export.run(Context(c, folder / 'w', make_mesh()))
  return folder / 'w', said.getvalue()


def test_the_canaries_are_where_patients_belong(run):
  """Else the tests below would find nothing whatever happened."""
  workdir, _ = run
  page = (workdir / 'report.html').read_text()
  assert VALUE.search(page)
  stored = b''.join(p.read_bytes() for p in (workdir / 'prepare').iterdir() if p.is_file())
  assert ID.encode() in stored


def test_nothing_is_said_about_a_patient(run):
  workdir, said = run
  assert len(said) > 500 and 'evaluate' in said
  assert ID not in said and not VALUE.search(said)
  logs = [p for p in workdir.rglob('*') if p.is_file() and (p.name.startswith('events.out') or p.name in (
      'metrics.jsonl', 'done.json', 'started.json', 'environment.json', 'config.json', 'metrics.json', 'summary.json'))]
  assert len(logs) > 15
  for path in logs:
    content = path.read_bytes()
    assert ID.encode() not in content, path.name
    if not path.name.startswith('events.out'):  # binary: four such bytes may stand for anything
      assert not VALUE.search(content.decode()), path.name


def test_tensorboard_holds_numbers_alone(run):
  workdir, _ = run
  for path in workdir.rglob('events.out*'):
    assert b'ferritin' not in path.read_bytes() and b'lactate' not in path.read_bytes()


def test_what_is_passed_on_names_no_patient(run):
  workdir, _ = run
  shared = report.write_report(workdir, share=True).read_text()
  card = (workdir / 'export' / 'rl' / 'README.md').read_text()
  for text in (shared, card):
    assert ID not in text and not VALUE.search(text)
  tables = list((workdir / 'evaluate').rglob('*.parquet'))
  assert {'predictions.parquet', 'rl.parquet'} <= {p.name for p in tables}
  for path in tables:
    assert ID.encode() not in path.read_bytes(), path.name


def test_the_salt_stays_where_it_is(run):
  workdir, said = run
  secret = (workdir / pseudonyms.FILE).read_text()
  assert len(secret) == 64 and secret not in said
  for path in workdir.rglob('*'):
    assert not path.is_file() or path.name == pseudonyms.FILE or secret.encode() not in path.read_bytes(), path.name
