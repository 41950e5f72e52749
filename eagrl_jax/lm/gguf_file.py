"""The container of llama.cpp's checkpoints, read with distrust: sizes that the file cannot hold are refused early."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from eagrl_jax.types import EagrlError

ARCHITECTURES = ('llama', 'qwen2', 'qwen3')


def open_gguf(path: Path) -> tuple[Metadata, dict[str, gguf.ReaderTensor]]:
  """Metadata and tensors by name; the tensors' data stay in the file until they are read.

  Raises:
    EagrlError: no such file, or one that is cut short or damaged.
  """
  if not path.is_file():
    raise EagrlError(f'lm.checkpoint={path} is not a file; give the path of a .gguf file')
  try:
    with np.errstate(over='raise'):  # an offset past 2**64 would wrap
      reader = _Reader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
  except (ValueError, KeyError, IndexError, OSError, ArithmeticError, RecursionError, struct.error) as e:
    raise EagrlError(f'{path.name} is not a readable GGUF file ({type(e).__name__}: {str(e)!r:.80}); download it'
                     ' again') from e
  part, parts = (fields.get(f'split.{name}') for name in ('no', 'count'))
  if isinstance(part, int) and isinstance(parts, int) and parts > 1:
    raise EagrlError(f'{path.name} is part {part + 1} of {parts}; join the parts: llama-gguf-split --merge FIRST WHOLE')
  return Metadata(path.name, fields), {t.name: t for t in reader.tensors}


class _Reader(gguf.GGUFReader):
  """Refuses what lies past the end of the file, which the library reads as nothing, 2**60 times if a header says so."""

  def _get(self, offset, dtype, count=1, override_order=None):
    out = super()._get(offset, dtype, count, override_order)
    if len(out) != count:
      raise ValueError('it ends early')
    return out


class Metadata:
  """Fields of the file, with an error that names the missing or impossible one."""

  def __init__(self, file: str, fields: dict[str, Any]):
    self.file, self._fields = file, fields
    self.architecture: str = self['general.architecture']
    if self.architecture not in ARCHITECTURES:
      raise EagrlError(f'{file}: general.architecture={self.architecture!r} is not supported; use one of'
                       f' {", ".join(ARCHITECTURES)}')

  def __getitem__(self, key: str) -> Any:
    if key not in self._fields:
      raise EagrlError(f'{self.file}: metadata field {key!r} is missing; download the file again')
    return self._fields[key]

  def get(self, key: str, default: Any = None) -> Any:
    return self._fields.get(key, default)

  def count(self, key: str, default: int | None = None) -> int:
    return self._positive(key, default, int)

  def number(self, key: str, default: float | None = None) -> float:
    return float(self._positive(key, default, (int, float)))

  def _positive(self, key, default, kind):
    key = f'{self.architecture}.{key}'
    value = self[key] if default is None else self.get(key, default)
    if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < math.inf:
      raise EagrlError(f'{self.file}: metadata field {key!r} is {value!r:.40}, no positive number; download the file'
                       ' again')
    return value
