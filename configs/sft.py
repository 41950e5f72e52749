"""The pipeline up to the sft stage."""

from configs import defaults


def get_config(variant: str = ''):
  config = defaults.get_config(variant)
  config.target = 'sft'
  return config
