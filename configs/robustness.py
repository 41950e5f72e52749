"""The whole method, then its robustness: policies and expert under perturbed records and prompts.

On a finished run folder only the robustness stage is done, given the variant and the flags of that run.
"""

from configs import defaults


def get_config(variant: str = ''):
  config = defaults.get_config(variant)
  config.target, config.remake = 'robustness', False
  return config
