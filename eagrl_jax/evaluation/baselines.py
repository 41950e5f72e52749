"""What a few lines of scikit-learn reach on the same patients: a sanity check beside every policy and expert."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
from scipy.stats import rankdata
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from eagrl_jax.evaluation import metrics
from eagrl_jax.types import EagrlError

KINDS = ('logistic', 'boosting', 'last_value')
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # inverse strengths that the folds choose from
BINS = 5  # of the last-value rule


@dataclasses.dataclass(frozen=True)
class Table:
  """A patient a row: statistics of each feature over its record, and statics."""

  x: np.ndarray  # [N, 5 F + 2]: last, mean, min, max, times measured; age, sex; NaN unknown
  n_features: int

  @property
  def last(self) -> np.ndarray:
    """The last value of each feature, `[N, F]`."""
    return self.x[:, :self.n_features]

  @property
  def measured(self) -> np.ndarray:
    """How often each feature was measured, `[N, F]`."""
    return self.x[:, 4 * self.n_features:5 * self.n_features]


def summarise(values: np.ndarray, valid: np.ndarray, age: np.ndarray, sex: np.ndarray) -> Table:
  """Summaries of a cohort on its grid.

  Args:
    values: `[N, T, F]`, NaN where not measured. valid: `[N, T]`, False on padding.
    age: `[N]` years, NaN unknown. sex: `[N]`, -1 unknown.
  """
  t, f = values.shape[1:]
  seen = np.isfinite(values) & valid[:, :, None]
  at = np.where(seen, np.arange(t)[None, :, None], -1).max(1)  # [N, F], -1 never
  last = np.where(at >= 0, np.take_along_axis(values, np.maximum(at, 0)[:, None], 1)[:, 0], np.nan)
  known = np.where(seen, values, np.nan)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', RuntimeWarning)  # of features never measured: NaN is what is wanted
    statistics = [np.nanmean(known, 1), np.nanmin(known, 1), np.nanmax(known, 1)]
  statics = np.stack([age, np.where(sex >= 0, sex, np.nan)], 1)
  return Table(np.concatenate([last, *statistics, seen.sum(1), statics], 1).astype(np.float64), f)


def predict(kind: str, table: Table, label: np.ndarray, train: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
  """Probabilities of `rows` by a model fitted on `train` alone. `-> [rows]`

  Kinds: 'logistic' (median imputation, standardised, ridge penalty by cross-validation), 'boosting' (histogram
  gradient boosting), 'last_value' (a rule: the last value of the one feature that separates the train patients best,
  each fifth of its range with its train share).

  Raises:
    EagrlError: an unknown kind, or train patients of one outcome.
  """
  if kind not in KINDS:
    raise EagrlError(f'baseline {kind!r} is unknown; choose one of {", ".join(KINDS)}')
  if reason := metrics.undefined(label[train]):
    raise EagrlError(f'evaluate: baselines cannot be fitted: {reason}')
  if kind == 'last_value':
    return _last_value(table.last, label, train, rows)
  return fitted(kind, table.x, label, train, rows, seed)


def fitted(kind: str, x: np.ndarray, label: np.ndarray, train: np.ndarray, rows: np.ndarray, seed: int,
           penalties: tuple[float, ...] = PENALTIES) -> np.ndarray:
  """'logistic' or 'boosting' on any columns `x [N, P]`, NaN allowed; of one penalty no folds are made. `-> [rows]`"""
  x = x[:, np.isfinite(x[train]).any(0)]  # a column that train patients never have says nothing
  if not x.shape[1]:
    return np.full(len(rows), label[train].mean())
  if kind == 'boosting':
    model = HistGradientBoostingClassifier(learning_rate=0.05, max_iter=150, max_leaf_nodes=15, l2_regularization=1.0,
                                           random_state=seed)
  else:
    folds = int(min(5, np.bincount(label[train].astype(int)).min()))
    if folds < 2:
      raise EagrlError('evaluate: a baseline needs two train patients of each outcome; enlarge the train split')
    steps = make_pipeline(SimpleImputer(strategy='median', keep_empty_features=True), StandardScaler(),
                          LogisticRegression(C=penalties[0], max_iter=2000))
    model = steps if len(penalties) == 1 else GridSearchCV(
        steps, {'logisticregression__C': penalties}, cv=folds, scoring='neg_log_loss')
  # One thread: the tables are small, and OpenMP's idle threads spin. On cores that others use, seconds became minutes.
  with warnings.catch_warnings(), threadpool_limits(1):
    warnings.simplefilter('ignore', ConvergenceWarning)
    model.fit(x[train], label[train])
    return model.predict_proba(x[rows])[:, 1]


def best_feature(last: np.ndarray, label: np.ndarray, train: np.ndarray) -> int:
  """The feature whose last value `[N, F]` separates the train patients best, by AUROC times how many have it."""
  y, x = label[train], last[train]
  separation = np.zeros(x.shape[1])
  for f in range(x.shape[1]):
    known = np.isfinite(x[:, f])
    if metrics.undefined(y[known]) is None:
      ranks = rankdata(x[known, f]) / known.sum()
      separation[f] = abs(metrics.auroc(y[known], ranks) - 0.5) * known.mean()
  return int(separation.argmax())


def _last_value(last: np.ndarray, label: np.ndarray, train: np.ndarray, rows: np.ndarray) -> np.ndarray:
  y, x, best = label[train], last[train], best_feature(last, label, train)
  prevalence = float(y.mean())
  known = np.isfinite(x[:, best])
  if not known.any():
    return np.full(len(rows), prevalence)
  edges = np.quantile(x[known, best], np.linspace(0, 1, BINS + 1)[1:-1])
  place = lambda v: np.where(np.isfinite(v), np.searchsorted(edges, v), BINS)  # the last place: never measured
  count = np.bincount(place(x[:, best]), minlength=BINS + 1)
  positive = np.bincount(place(x[:, best]), weights=y, minlength=BINS + 1)
  share = (positive + prevalence) / (count + 1)  # one patient of average risk in every place
  return share[place(last[rows][:, best])]
