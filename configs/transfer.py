"""A finished run's policies and expert on another cohort with outcomes: `<workdir>/transfer/<name>/metrics.json`.

    python -m eagrl_jax.main --config=configs/transfer.py:physionet2012 --workdir=runs/first

The variant and `config.data` say what the other cohort is and how it is read; which features, which hours of a record
and which statistics are the run's own. The other direction is a second run, on the other cohort, and its transfer.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import defaults

# Of the run, not of the cohort.
OWN = ('bin_hours', 'max_visits', 'window_hours', 'aggregate', 'test', 'valid_fraction', 'splits', 'protocol', 'ranges',
       'seed')


def get_config(variant: str = ''):
  config = defaults.get_config(variant)
  for own in OWN:
    del config.data[own]
  return ConfigDict(dict(
      target='transfer',
      seed=1,  # of a synthetic cohort: with the run's own seed its patients would be the run's
      data=config.data,
      transfer=ConfigDict(dict(
          patients=0,  # judge so many, at random; 0 = all
          same_patients=placeholder(bool),  # whether an id that the run's patients have too is the same patient's:
          # True leaves out whom the run has learnt from; unset: known of published data sets, else asked for
          name='')),  # of the output's folder; '' = that of the cohort
      mesh=config.mesh))
