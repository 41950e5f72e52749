"""The same experiment as rl.py; on a finished run folder only a changed evaluation is redone."""

from configs import defaults


def get_config(variant: str = ''):
  return defaults.get_config(variant)
