"""The pipeline up to the search stage."""

from configs import defaults


def get_config(variant: str = ''):
  config = defaults.get_config(variant)
  config.target = 'search'
  return config
