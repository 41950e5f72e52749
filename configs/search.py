"""The pipeline up to the search stage."""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config(variant)
  config.target = 'search'
  return config
