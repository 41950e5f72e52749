"""What is the same in every hospital, under the names that data sets give it.

A concept's first spelling that a table has stands for it there: a pressure by a line in an artery, or one of which
nothing is said, before one by a cuff. The next one does for patients who have no value of the first.
"""

from __future__ import annotations

from eagrl_jax.ehr.features import FeatureTable

SYSTOLIC = ('systolic blood pressure', 'systolic pressure', 'systolic arterial pressure', 'SBP', 'SysABP')
DIASTOLIC = ('diastolic blood pressure', 'diastolic pressure', 'diastolic arterial pressure', 'DBP', 'DiasABP')
MEAN = ('mean blood pressure', 'mean arterial pressure', 'MAP', 'MBP')
CUFF_SYSTOLIC = ('non-invasive systolic pressure', 'NISysABP')
CUFF_DIASTOLIC = ('non-invasive diastolic pressure', 'NIDiasABP')
CUFF_MEAN = ('non-invasive mean pressure', 'NIMAP')
GCS = (('GCS total', 'Glasgow coma score', 'Glasgow coma scale total', 'GCS', 'Glasgow coma scale'),
       ('GCS eye opening', 'GCS eye', 'Glasgow coma scale eye opening'),
       ('GCS motor response', 'GCS motor', 'Glasgow coma scale motor response'),
       ('GCS verbal response', 'GCS verbal', 'Glasgow coma scale verbal response'))

# Not here: what may be of another specimen, as a pO2 or SaO2 of venous blood, and a name that is also a count's, as
# neutrophils.
CONCEPTS = (
    SYSTOLIC + CUFF_SYSTOLIC, DIASTOLIC + CUFF_DIASTOLIC, MEAN + CUFF_MEAN, *GCS,
    ('aPTT', 'activated partial thromboplastin time', 'partial thromboplastin time', 'PTT'),
    ('neutrophil percentage', 'neutrophil %', 'neutrophils %'),
    ('lymphocyte percentage', 'lymphocyte %', 'lymphocytes %'))


def find(features: FeatureTable, spellings: tuple[str, ...]) -> int | None:
  """Id of the feature that stands for a concept, None where the table has none."""
  return next(iter(in_order(features, spellings)), None)


def in_order(features: FeatureTable, spellings: tuple[str, ...]) -> list[int]:
  """Ids of a table's features that are of a concept, the one that stands for it first."""
  return list(dict.fromkeys(f for name in spellings if (f := features.find(name)) is not None))
