"""The whole method, then the policy as a Hugging Face directory: `<workdir>/export/rl`.

On a finished run folder only the export is done, given the variant and the flags of that run.
`--config.export.policy=sft` takes another policy; what was exported before moves to `superseded/`.
"""

from configs import defaults


def get_config(variant: str = ''):
  config = defaults.get_config(variant)
  config.target, config.remake = 'export', False
  return config
