"""The whole method: prepare, expert, base, search, sft, rl, evaluate."""

from configs import base


def get_config(variant: str = ''):
  return base.get_config(variant)
