"""The pipeline up to the expert stage.

`configs/expert.py:published` trains the released ConCare recipe (ALGORITHM.md §2) instead: one seed, wide, large
batches, little patience.
"""

from configs import defaults


def get_config(variant: str = ''):
  published = variant == 'published'
  config = defaults.get_config('' if published else variant)
  if published:
    config.expert.update(members=1, hidden=128, dropout=0.1, time_attention='pyehr', batch=256, epochs=50, patience=5,
                         select_on='auroc')
  config.target = 'expert'
  return config
