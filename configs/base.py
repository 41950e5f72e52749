"""The pipeline up to the base policy: it reads a record and writes the answer format, and knows no outcome."""

from configs import defaults


def get_config(variant: str = ''):
  config = defaults.get_config(variant)
  config.target = 'base'
  return config
