"""The same experiment as rl.py; on a finished run folder only a changed evaluation is redone."""

from configs import base


def get_config(variant: str = ''):
  return base.get_config(variant)
