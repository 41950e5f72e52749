"""The pipeline up to the sft stage."""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config(variant)
  config.target = 'sft'
  return config
