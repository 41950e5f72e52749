"""The expert's input channels: one a feature, or one a level of a feature whose spec says `encoding: one_hot`.

A one-hot channel is 1 while its level is the latest one known and 0 else; before the first value all of a feature's
channels are 0. Prompts, answers and salience keep one entry a feature: `owners` says whose channel is whose.
"""

from __future__ import annotations

import numpy as np

from eagrl_jax.ehr.features import FeatureSpec, FeatureTable


def owners(features: FeatureTable) -> np.ndarray:
  """Feature id of each channel, in order. `[C] int64`"""
  return np.repeat(np.arange(len(features)), [width(spec) for spec in features])


def width(spec: FeatureSpec) -> int:
  return len(spec.levels) if spec.encoding == 'one_hot' else 1


def nearest(spec: FeatureSpec, values: np.ndarray) -> np.ndarray:
  """Place of the level nearest to each value, the lower of two; a mean of a visit may lie between levels."""
  return np.abs(np.asarray(values)[..., None] - np.array([level for level, _ in spec.levels])).argmin(-1)


def seen_levels(features: FeatureTable, values: np.ndarray) -> dict[str, tuple[int, ...]]:
  """Places of the levels that occur, of every one-hot feature. `values [..., F]` raw, NaN where not measured."""
  found = {}
  for f, spec in enumerate(features):
    if spec.encoding == 'one_hot':
      x = values[..., f]
      found[spec.name] = tuple(np.unique(nearest(spec, x[~np.isnan(x)])).tolist())
  return found


def split(features: FeatureTable, filled: np.ndarray, latest: np.ndarray, observed: np.ndarray,
          known: dict[str, tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
  """Features to channels.

  Args:
    filled: [N, T, F] what a feature's own channel holds.
    latest: [N, T, F] raw values carried forward, NaN before the first.
    observed: [N, T, F] bool.
    known: of `seen_levels` on train: a level that no train patient had has no trained weights, its channel stays 0.

  Returns:
    Values and observed, `[N, T, C]`.
  """
  owner = owners(features)
  values = filled[..., owner]
  for f, spec in enumerate(features):
    if spec.encoding == 'one_hot':
      place = np.where(np.isnan(latest[..., f]), -1, nearest(spec, np.nan_to_num(latest[..., f])))
      place = np.where(np.isin(place, known.get(spec.name, ())), place, -1)
      values[..., owner == f] = place[..., None] == np.arange(len(spec.levels))
  return values, observed[..., owner]


def moved(features: FeatureTable, order: np.ndarray, x: np.ndarray) -> np.ndarray:
  """Channels of features that change places, each feature's place keeping its width.

  A place takes the first channels of the feature that comes there, and zeros where that has fewer: so what does not
  move stays where it was.

  Args:
    order: [n, F], the feature that comes to each place. x: [n, T, C].
  """
  owner = owners(features)
  nth = np.arange(len(owner)) - np.searchsorted(owner, owner)  # of a feature's channels
  comes = order[:, owner]  # [n, C]
  fits = nth < np.bincount(owner)[comes]
  at = np.where(fits, np.searchsorted(owner, comes) + nth, 0)
  return np.where(fits[:, None], np.take_along_axis(x, at[:, None], 2), np.zeros((), x.dtype))
