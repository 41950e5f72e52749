"""The numbers of policy, expert and update, held against other implementations in programs as users compile them."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).parent
WHICH = {  # a name that is no test any more is an error
    'the policy': ('lm/test_parity.py', 'lm/test_logprobs.py', 'lm/test_matmul.py', 'lm/test_precision.py',
                   'lm/test_sampler.py::test_greedy_equals_the_argmax_of_the_plain_decoder'),
    'attention': ('lm/test_flash.py',
                  'lm/test_forward.py::test_tap_equals_whole_attention_maps_in_value_and_gradient'),
    'the expert': ('expert/test_concare.py::test_matches_naive_numpy',
                   'expert/test_gru.py::test_backward_pass_is_the_derivative'),
    'the update': ('rl/test_update.py::test_loss_against_a_numpy_loop',
                   'rl/test_update.py::test_gradient_against_finite_differences')}


@pytest.mark.parametrize('what', WHICH)
def test_numbers_hold_in_optimised_programs(what):
  kept = {name: value for name, value in os.environ.items()
          if name not in ('XLA_FLAGS', 'JAX_DISABLE_MOST_OPTIMIZATIONS') and 'XDIST' not in name}
  words = [str(TESTS / word) for word in WHICH[what]]
  done = subprocess.run([sys.executable, '-m', 'pytest', '-n', '0', '-p', 'no:cacheprovider', *words], cwd=TESTS.parent,
                        env=kept | {'EAGRL_OPTIMISED': '1'}, text=True, capture_output=True, timeout=600)
  assert done.returncode == 0 and ' passed' in done.stdout, done.stdout[-3000:]
