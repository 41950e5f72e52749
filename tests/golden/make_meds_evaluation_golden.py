"""Writes tests/golden/meds_evaluation: made-up predictions as an evaluation writes them, and what the package says.

Needs `pip install meds-evaluation==0.0.6` in an environment of its own; the tests do not. Run from the repository root,
with the Python of that environment:

  python tests/golden/make_meds_evaluation_golden.py path/to/python

`<arm>.parquet` is what the package was given, `expected.json` its version, its PredictionSchema (each file is validated
against it as it stands) and its figures of each arm.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from eagrl_jax.evaluation import meds_predictions  # noqa: E402

N, THRESHOLD, LARGEST = 150, 0.5, 2**62
ASK = '''
import importlib.metadata, json, sys
import pyarrow.parquet as pq
from meds_evaluation.schema import PredictionSchema as S
for path in sys.argv[1:]:
  S.validate(pq.read_table(path))
print(json.dumps({'version': importlib.metadata.version('meds-evaluation'), 'required': S.required_columns(),
                  'schema': {f.name: str(f.type) for f in S.schema()}, 'extra_columns': S.allow_extra_columns}))
'''


def patients() -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
  """subject_id `[N]`, prediction_time `[N]`, label `[N]`, and the probability `[N]` of each arm.

  'expert' has no ties. 'policy' writes two decimals, as means of few answers are: ties, values on the edges of
  calibration bins and at the threshold.
  """
  rng = np.random.default_rng(0)
  risk = rng.beta(2, 3, N)
  label = rng.random(N) < risk
  subject = np.append(rng.choice(10**9, N - 1, replace=False), LARGEST)
  time = np.datetime64('2150-03-01T06:30', 'us') + np.arange(N) * np.timedelta64(1_234_567_891, 'us')
  odds = risk / (1 - risk) * rng.lognormal(0, 0.5, N)
  said = np.round(np.clip(risk + rng.normal(0, 0.2, N), 0, 1), 2)
  return subject, time, label, {'expert': odds / (1 + odds), 'policy': said}


def tables() -> dict[str, pa.Table]:
  """Each arm's predictions, as an evaluation writes them."""
  subject, time, label, probs = patients()
  return {arm: meds_predictions.table(subject, time, label, prob, THRESHOLD) for arm, prob in probs.items()}


def main(python: str) -> None:
  target = HERE / 'meds_evaluation'
  target.mkdir(exist_ok=True)
  files = {arm: target / f'{arm}.parquet' for arm in tables()}
  for arm, table in tables().items():
    pq.write_table(table, files[arm])
  said = subprocess.run([python, '-c', ASK, *map(str, files.values())], check=True, capture_output=True, text=True)
  expected = {**json.loads(said.stdout), 'arms': {}}
  with tempfile.TemporaryDirectory() as folder:
    for arm, path in files.items():
      out = pathlib.Path(folder) / f'{arm}.json'
      subprocess.run([python, '-m', 'meds_evaluation', f'predictions_path={path}', f'output_file={out}'], check=True)
      expected['arms'][arm] = json.loads(out.read_text())
  (target / 'expected.json').write_text(json.dumps(expected, indent=2) + '\n')


if __name__ == '__main__':
  main(sys.argv[1])
