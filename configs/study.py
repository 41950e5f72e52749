"""Every arm of the method's evaluation over several seeds, one table: stages/study.py.

    python -m eagrl_jax.main --config=configs/study.py --workdir=runs/study
    python -m eagrl_jax.main --config=configs/study.py:tjh --workdir=runs/study_tjh --config.study.seeds=0,1
"""

from configs import defaults


def get_config(variant: str = ''):
  config = defaults.get_config(variant)
  config.target = 'study'
  return config
