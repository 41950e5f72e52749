"""The whole method, then the policy as a Hugging Face directory: `<workdir>/export/rl`.

On a finished run folder only the export is done. `--config.export.policy=sft` takes another policy.
"""

from configs import defaults


def get_config(variant: str = ''):
  config = defaults.get_config(variant)
  config.target = 'export'
  return config
