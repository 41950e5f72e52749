"""Where a text file is damaged: a byte, never its content."""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Iterator
from pathlib import Path

PACKED = ('.gz', '.bz2', '.zst', '.lz4')  # that Arrow unpacks, by the name
_BLOCK = 1 << 16


def where(path: Path, encoding: str) -> str:
  """' at byte N' of the first byte that cannot be unpacked or decoded; '' where there is none.

  Of what is packed it reads gzip alone; of the others it says nothing.
  """
  if path.suffix in PACKED[1:]:
    return ''
  try:
    decoder = codecs.getincrementaldecoder(encoding)()
    done = 0
    for block in _plain(path) if path.suffix == '.gz' else _raw(path):
      waiting = len(decoder.getstate()[0])
      try:
        decoder.decode(block)
      except UnicodeDecodeError as error:
        return f' at byte {done - waiting + error.start}' + (' of what it unpacks to' if path.suffix == '.gz' else '')
      done += len(block)
    decoder.decode(b'', final=True)
  except _Packed as error:
    return f' at byte {error.args[0]} of the packed file'
  except UnicodeDecodeError:
    return f' at byte {done}, its end'
  except (OSError, LookupError, UnicodeError):  # no encoding of that name, no mark of byte order
    pass
  return ''


class _Packed(Exception):
  """Offset of the byte that cannot be unpacked, or of the end of a file that was cut off."""


def _raw(path: Path) -> Iterator[bytes]:
  with path.open('rb') as file:
    while block := file.read(_BLOCK):
      yield block


def _plain(path: Path) -> Iterator[bytes]:
  """The content of a gzip file of one or several members."""
  unpack, done = None, 0
  for block in _raw(path):
    rest = block
    while rest:
      unpack = unpack or zlib.decompressobj(31)
      before = unpack.copy()
      try:
        yield unpack.decompress(rest)
      except zlib.error:
        raise _Packed(done + len(block) - len(rest) + _first_bad(before, rest)) from None
      rest, unpack = (unpack.unused_data, None) if unpack.eof else (b'', unpack)
    done += len(block)
  if unpack is not None:
    raise _Packed(done)


def _first_bad(unpack: zlib._Decompress, block: bytes) -> int:
  """Where in a block that cannot be unpacked."""
  for i in range(len(block)):
    try:
      unpack.decompress(block[i:i + 1])
    except zlib.error:
      return i
  return len(block)
