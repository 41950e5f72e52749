"""The whole method: prepare, expert, base, search, sft, rl, evaluate."""

from configs import defaults


def get_config(variant: str = ''):
  return defaults.get_config(variant)
