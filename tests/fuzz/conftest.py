"""Every parser of outside data gets damaged and absurd input: it may refuse it with our error, and nothing else.

`EAGRL_FUZZ=10000` sets how many cases a parser gets; the default is for every run of the tests.
"""

import os
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / 'ehr')]

settings.register_profile(
    'fuzz', max_examples=int(os.environ.get('EAGRL_FUZZ', '40')), deadline=None, database=None,
    derandomize='EAGRL_FUZZ' not in os.environ,  # the same cases for everybody, unless many are asked for
    suppress_health_check=list(HealthCheck))
settings.load_profile('fuzz')
