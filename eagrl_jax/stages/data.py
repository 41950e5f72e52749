"""The prepared cohort as later stages read it back."""

from __future__ import annotations

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from eagrl_jax.ehr import normalise, splits, store
from eagrl_jax.ehr.records import Cohort, Visits, to_visits
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.tokenizer import Tokenizer
from eagrl_jax.stages import lengths, settings
from eagrl_jax.stages.context import Context
from eagrl_jax.stages.encode import Encoder
from eagrl_jax.types import EagrlError, ExpertBatch, made_again


@dataclasses.dataclass(frozen=True)
class Data:
  cohort: Cohort
  visits: Visits
  splits: splits.Splits
  expert: ExpertBatch  # all N patients, normalised with train statistics; its channels are of `ehr.channels`

  @property
  def measured(self) -> np.ndarray:
    """Whether a patient has any value of a feature that the models are shown. `[N, F]` bool"""
    return (~np.isnan(self.visits.values)).any(1)


def grid(cohort: Cohort, data: ConfigDict) -> Visits:
  """The cohort on the config's time grid."""
  return to_visits(cohort, data.bin_hours, data.max_visits, data.aggregate, data.window_hours or None)


def load(context: Context) -> Data:
  folder = context.folder('prepare')
  cohort = store.load(folder)
  visits = grid(cohort, context.config.data)
  try:
    parts = splits.load(folder / 'splits.parquet', cohort.subject_id)
  except EagrlError as error:  # of a user's own split file the fix would be another
    raise EagrlError('splits: prepare/splits.parquet is missing, damaged or of another cohort; '
                     f'{made_again("prepare")}') from error
  statistics = normalise.load(folder / 'statistics.json')
  if statistics.made_of not in ('', normalise.origin(store.recorded_sha256(folder), cohort.subject_id[parts.train])):
    raise EagrlError('statistics: prepare/statistics.json is of another cohort or other train patients than '
                     f'prepare/ holds; put the file back, or {made_again("prepare")}')
  return Data(cohort, visits, parts, normalise.apply(statistics, visits, cohort))


def encoder(context: Context, data: Data, tokenizer: Tokenizer | None, lm: LMConfig | None = None) -> Encoder:
  """Renders these patients, with `lm` for a policy of so many positions."""
  c = context.config
  return Encoder(data.cohort, data.visits, tokenizer, settings.prompt(c), c.prompt.bucket,
                 lm.max_positions if lm else 0, lengths.answer(c))


def prediction_hours(data: Data, window_hours: float) -> np.ndarray:
  """When each patient is predicted, on the cohort's clock: as soon as all that is shown is known. `[N]`

  With a window that is the end of the last visit within it, for the whole record the last value: the end of its visit
  may lie behind the end of the stay.
  """
  if window_hours:
    return np.minimum(data.visits.hours.max(1), window_hours)
  last = np.zeros(len(data.cohort), np.float32)
  np.maximum.at(last, data.cohort.patient, data.cohort.hour)
  return last


def prevalence(data: Data) -> float:
  """Of the train patients: the score of an answer that cannot be parsed."""
  return float(np.mean(data.cohort.label[data.splits.train]))
