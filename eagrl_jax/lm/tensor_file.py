"""Writing a safetensors file that others may read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import numpy as safetensors_numpy


def save(tensors: Mapping[str, np.ndarray], path: Path) -> None:
  """Writes tensors as transformers and PEFT read them, readable to whom the umask lets read.

  The library leaves its file to the owner alone, so that a server of another user could not open it.
  """
  safetensors_numpy.save_file(dict(tensors), path, metadata={'format': 'pt'})
  mask = os.umask(0)
  os.umask(mask)
  path.chmod(0o666 & ~mask)
