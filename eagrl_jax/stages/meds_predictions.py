"""An evaluation's files for meds-evaluation: `evaluate/meds/<arm>.parquet`, row by row those of predictions.parquet.

A subject_id is the patient's pseudonym as a number, a prediction_time the hours since the first record, counted from
1970-01-01. With `evaluate.plain_ids` ids that are whole numbers stand as the source gives them, and so do the
times of a MEDS label set; of other sources the cohort keeps no calendar.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from eagrl_jax.ehr.sources import bounded
from eagrl_jax.evaluation import meds_predictions, pseudonyms
from eagrl_jax.stages import data as data_lib
from eagrl_jax.stages.context import Context
from eagrl_jax.types import EagrlError


def write(context: Context, data: data_lib.Data, rows: np.ndarray, label: np.ndarray,
          probs: dict[str, np.ndarray]) -> None:
  """A file an arm. `rows [n]` of the cohort, `label [n]`, a probability `[n]` of each arm."""
  folder, threshold = context.folder('evaluate/meds'), context.config.evaluate.threshold
  subject, time = whom_and_when(context, data)
  for name, prob in probs.items():
    made = meds_predictions.table(subject[rows], time[rows], label, prob, threshold)
    pq.write_table(made, folder / f'{name}.parquet')


def whom_and_when(context: Context, data: data_lib.Data) -> tuple[np.ndarray, np.ndarray]:
  """The cohort's `subject_id [N] int64` and `prediction_time [N] datetime64[us]`."""
  c, ids = context.config, data.cohort.subject_id
  subject = meds_predictions.integers(ids) if c.evaluate.plain_ids else None
  if c.evaluate.plain_ids and c.data.source == 'meds':
    time = first_labelled(Path(c.data.outcomes), ids)
  else:
    time = meds_predictions.after_epoch(data_lib.prediction_hours(data, c.data.window_hours))
  return pseudonyms.numbers(ids, pseudonyms.salt(context.workdir)) if subject is None else subject, time


def first_labelled(outcomes: Path, subject_id: np.ndarray) -> np.ndarray:
  """The prediction times, in UTC where they have a zone, of which `ehr.sources.meds` took the labels.

  Args:
    outcomes: the label file, or the folder of them, that the cohort was read with.
    subject_id: [N] str.

  Returns:
    [N] datetime64[us].

  Raises:
    EagrlError: a file that cannot be read, or no longer has a label of every patient.
  """
  files = sorted(outcomes.rglob('*.parquet')) if outcomes.is_dir() else [outcomes]
  with bounded.database() as db, bounded.reading('data.outcomes', outcomes.name):
    found = db.execute(f'''
        SELECT CAST(subject_id AS VARCHAR) AS id, min(CAST(CAST(prediction_time AS TIMESTAMPTZ) AS TIMESTAMP)) AS time
        FROM read_parquet([{", ".join(map(bounded.quoted, files))}], union_by_name=true)
        WHERE subject_id IS NOT NULL AND boolean_value IS NOT NULL GROUP BY 1''').fetchnumpy()
  time = dict(zip(found['id'], found['time']))
  if not time.keys() >= set(subject_id):
    raise EagrlError(f'data.outcomes: {outcomes.name} has changed since the cohort was read; start the run again')
  return np.array([time[i] for i in subject_id], 'datetime64[us]')
