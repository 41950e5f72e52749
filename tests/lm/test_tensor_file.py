"""Weights on disk are for whom the umask lets read them."""

from __future__ import annotations

import os

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from eagrl_jax.lm import tensor_file


@pytest.mark.parametrize(('mask', 'mode'), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_modes_follow_the_umask(mask, mode, tmp_path):
  before = os.umask(mask)
  try:
    tensor_file.save({'a': np.arange(3.0)}, tmp_path / 'a.safetensors')
    assert os.umask(mask) == mask  # left as it was
  finally:
    os.umask(before)
  assert (tmp_path / 'a.safetensors').stat().st_mode & 0o777 == mode
  np.testing.assert_array_equal(safetensors_numpy.load_file(tmp_path / 'a.safetensors')['a'], np.arange(3.0))
