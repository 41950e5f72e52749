"""SentencePiece's own file, `tokenizer.model`: a protocol buffer, of which a few fields are read."""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eagrl_jax.types import EagrlError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # the types of pieces
BPE = 2  # a type of models, 1 of which is Unigram
_ADVICE = 'convert it to tokenizer.json with transformers: AutoTokenizer.from_pretrained(OLD).save_pretrained(NEW)'


@dataclasses.dataclass(frozen=True)
class Model:
  """What `sentencepiece.build` needs of a BPE model; `bos` and `eos` are None where it has none."""

  pieces: list[str]
  scores: list[float]
  types: list[int]
  puts_space: bool
  bos: str | None
  eos: str | None


def read(file: Path) -> Model:
  """Reads the pieces and settings (sentencepiece_model.proto of github.com/google/sentencepiece).

  Raises:
    EagrlError: no SentencePiece model, or one that `sentencepiece.build` does not compute.
  """
  try:
    whole = list(_fields(file.read_bytes()))
    found = [dict(_fields(x)) for key, x in whole if key == 1]
    trainer, normalizer = (dict(field for k, x in whole if k == key for field in _fields(x)) for key in (2, 3))
    pieces = [piece[1].decode() for piece in found]
    scores = [struct.unpack('<f', piece.get(2, bytes(4)))[0] for piece in found]
    types = [piece.get(3, NORMAL) for piece in found]
    bos, eos = (_signed(trainer.get(key, default)) for key, default in ((41, 1), (42, 2)))
    if not all(map(math.isfinite, scores)):
      raise ValueError('a score that is not finite')
    named = [pieces[i] if 0 <= i < len(pieces) else None for i in (bos, eos)]
  except (IndexError, KeyError, TypeError, AttributeError, ValueError, struct.error) as e:
    raise EagrlError(f'{file.name} is not a readable SentencePiece model ({type(e).__name__}); {_ADVICE}') from e
  faults = [what for what, is_so in (
      ('a model other than BPE', trainer.get(3, 1) != BPE), ('a table that rewrites characters', normalizer.get(2)),
      ('white space that it removes', normalizer.get(4, 1)), ('spaces that it leaves', not normalizer.get(5, 1)),
      ('spaces behind words', trainer.get(24, 0)), ('unused pieces', UNUSED in types),
      ('no pieces', not pieces)) if is_so]
  if faults:
    raise EagrlError(f'{file.name}: {faults[0]} is not supported; {_ADVICE}')
  return Model(pieces, scores, types, bool(normalizer.get(3, 1)), *named)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
  """Number and content of each field: a whole number, or the bytes of anything else."""
  at = 0
  while at < len(data):
    tag, at = _varint(data, at)
    key, kind = tag >> 3, tag & 7
    if kind == 0:
      value, at = _varint(data, at)
      yield key, value
      continue
    size = {1: 8, 5: 4}.get(kind)
    if kind == 2:
      size, at = _varint(data, at)
    if size is None or at + size > len(data):
      raise ValueError('no protocol buffer')
    yield key, data[at:at + size]
    at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
  """Seven bits a byte, the lowest first; the high bit says that there are more. `-> value, where it ends`"""
  value = shift = 0
  while data[at] & 0x80:
    value |= (data[at] & 0x7F) << shift
    at, shift = at + 1, shift + 7
  return value | data[at] << shift, at + 1


def _signed(value: int) -> int:
  """An int32 is written as 64 bits."""
  return value - 2**64 if value >> 63 else value
