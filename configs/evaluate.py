"""The same experiment as rl.py; on a finished run folder only a changed evaluation is redone.

Give the variant and the flags of that run.
"""

from configs import defaults


def get_config(variant: str = ''):
  config = defaults.get_config(variant)
  config.remake = False
  return config
