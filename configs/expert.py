"""The pipeline up to the expert stage."""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config(variant)
  config.target = 'expert'
  return config
