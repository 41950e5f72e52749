"""What is held against other implementations is held against them once more in programs as users compile them."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).parent
WHICH = {'the policy': ('lm/test_parity.py',),
         'attention rows': ('lm/test_forward.py', '-k', 'tap_equals_whole_attention_maps'),
         'the expert': ('expert/test_concare.py', 'expert/test_gru.py', '-k', 'naive or derivative or no_jit'),
         'the update': ('rl/test_update.py', '-k', 'numpy_loop or finite_differences')}


@pytest.mark.parametrize('what', WHICH)
def test_numbers_hold_in_optimised_programs(what):
  kept = {name: value for name, value in os.environ.items()
          if name not in ('XLA_FLAGS', 'JAX_DISABLE_MOST_OPTIMIZATIONS') and 'XDIST' not in name}
  words = [str(TESTS / word) if word.endswith('.py') else word for word in WHICH[what]]
  done = subprocess.run([sys.executable, '-m', 'pytest', '-n', '0', '-p', 'no:cacheprovider', *words], cwd=TESTS.parent,
                        env=kept | {'EAGRL_OPTIMISED': '1'}, text=True, capture_output=True, timeout=600)
  assert done.returncode == 0 and ' passed' in done.stdout, done.stdout[-3000:]
