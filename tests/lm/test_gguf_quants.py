"""Every weight type of a GGUF file against a scalar reading of its block, and headers that promise too much."""

from __future__ import annotations

import signal
import struct
import tracemalloc

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from eagrl_jax.lm import bpe, gguf_io
from eagrl_jax.types import EagrlError

D_MODEL, D_FF = 512, 3  # two blocks of 256 a row
VOCAB = [*bpe.byte_characters(), 'ab', '<|end|>']
TESTED = 'blk.0.ffn_up.weight'


def half(block, at):
  return struct.unpack_from('<e', block, at)[0]


def nibble(byte, high):
  return byte >> 4 if high else byte & 15


def scale_and_min(packed, j):
  """Of sub-block j of 8, 6 bits each in 12 bytes: the last four borrow the top two bits of the first eight bytes."""
  if j < 4:
    return packed[j] & 63, packed[j + 4] & 63
  return (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4, (packed[j + 4] >> 4) | (packed[j] >> 6) << 4


def f32(block, e):
  return struct.unpack_from('<f', block)[0]


def f16(block, e):
  return half(block, 0)


def bf16(block, e):
  return struct.unpack('<f', b'\0\0' + block)[0]


def q8_0(block, e):  # d, 32 signed bytes
  return half(block, 0) * struct.unpack_from('<b', block, 2 + e)[0]


def q4_0(block, e):  # d, 16 bytes: elements 0-15 below, 16-31 above
  return half(block, 0) * (nibble(block[2 + e % 16], e >= 16) - 8)


def q4_1(block, e):  # d, m, then as q4_0
  return half(block, 0) * nibble(block[4 + e % 16], e >= 16) + half(block, 2)


def q5_0(block, e):  # d, a fifth bit of each element in 4 bytes, then as q4_0
  fifth = struct.unpack_from('<I', block, 2)[0] >> e & 1
  return half(block, 0) * ((nibble(block[6 + e % 16], e >= 16) | fifth << 4) - 16)


def q5_1(block, e):  # d, m, fifth bits, then as q4_0
  fifth = struct.unpack_from('<I', block, 4)[0] >> e & 1
  return half(block, 0) * (nibble(block[8 + e % 16], e >= 16) | fifth << 4) + half(block, 2)


def q4_k(block, e):  # d, dmin, 12 bytes of scales, 128 bytes: 32 of them hold sub-block 2g below and 2g + 1 above
  scale, low = scale_and_min(block[4:16], e // 32)
  q = nibble(block[16 + e // 64 * 32 + e % 32], e // 32 % 2)
  return half(block, 0) * scale * q - half(block, 2) * low


def q5_k(block, e):  # d, dmin, scales, 32 bytes of fifth bits (bit j is sub-block j's), then as q4_k
  scale, low = scale_and_min(block[4:16], e // 32)
  fifth = block[16 + e % 32] >> e // 32 & 1
  q = nibble(block[48 + e // 64 * 32 + e % 32], e // 32 % 2) | fifth << 4
  return half(block, 0) * scale * q - half(block, 2) * low


def q6_k(block, e):  # 128 bytes of low 4 bits, 64 of high 2 bits, 16 signed scales, d; two halves of four quarters
  part, quarter, l = e // 128, e % 128 // 32, e % 32
  low = nibble(block[part * 64 + quarter % 2 * 32 + l], quarter >= 2)
  high = block[128 + part * 32 + l] >> 2 * quarter & 3
  return half(block, 208) * struct.unpack_from('<b', block, 192 + e // 16)[0] * ((low | high << 4) - 32)


# reading of element e of a block, elements and bytes a block, where its half-precision numbers are
TYPES = {Kind.F32: (f32, 1, 4, ()), Kind.F16: (f16, 1, 2, (0,)), Kind.BF16: (bf16, 1, 2, ()),
         Kind.Q8_0: (q8_0, 32, 34, (0,)), Kind.Q4_0: (q4_0, 32, 18, (0,)), Kind.Q4_1: (q4_1, 32, 20, (0, 2)),
         Kind.Q5_0: (q5_0, 32, 22, (0,)), Kind.Q5_1: (q5_1, 32, 24, (0, 2)), Kind.Q4_K: (q4_k, 256, 144, (0, 2)),
         Kind.Q5_K: (q5_k, 256, 176, (0, 2)), Kind.Q6_K: (q6_k, 256, 210, (208,))}


def random_blocks(kind):
  """`[D_FF, bytes a row]`: any bytes, but finite numbers."""
  _, size, width, halves = TYPES[kind]
  r = np.random.default_rng(int(kind))
  blocks = r.integers(0, 256, (D_FF, D_MODEL // size, width), np.uint8)
  for at in halves:
    blocks[..., at:at + 2] = r.normal(size=(*blocks.shape[:2], 1)).astype('<f2').view(np.uint8)
  if kind == Kind.F32:
    blocks = r.normal(size=(*blocks.shape[:2], 1)).astype('<f4').view(np.uint8)
  if kind == Kind.BF16:
    blocks[..., 1] &= 0xBF  # exponents below 128: no infinity
  return blocks.reshape(D_FF, -1)


def write(path, kind=Kind.F32, raw=None, vocab=VOCAB, **fields):
  """A one-layer llama file whose `TESTED` weight is `raw`; `fields` add to its metadata or replace it."""
  w = gguf.GGUFWriter(path, 'llama')
  counts = {'block_count': 1, 'embedding_length': D_MODEL, 'feed_forward_length': D_FF, 'attention.head_count': 1,
            'attention.key_length': 2} | fields
  for name, value in counts.items():
    add = {str: w.add_string, bool: w.add_bool}.get(type(value), w.add_uint64)
    add(f'llama.{name}', value)
  w.add_layer_norm_rms_eps(1e-5)
  w.add_tokenizer_model('gpt2')
  w.add_tokenizer_pre('smollm')
  w.add_token_list(vocab)
  w.add_token_types([1] * (len(vocab) - 1) + [3])
  w.add_token_merges(['a b'])
  w.add_eos_token_id(len(vocab) - 1)
  shapes = {'token_embd': (len(VOCAB), D_MODEL), 'output_norm': (D_MODEL,), 'blk.0.attn_norm': (D_MODEL,),
            'blk.0.ffn_norm': (D_MODEL,), 'blk.0.attn_q': (2, D_MODEL), 'blk.0.attn_k': (2, D_MODEL),
            'blk.0.attn_v': (2, D_MODEL), 'blk.0.attn_output': (D_MODEL, 2), 'blk.0.ffn_gate': (D_FF, D_MODEL),
            'blk.0.ffn_down': (D_MODEL, D_FF)}
  for name, shape in shapes.items():
    w.add_tensor(f'{name}.weight', np.zeros(shape, np.float32))
  w.add_tensor(TESTED, random_blocks(kind) if raw is None else raw, raw_dtype=kind)
  w.write_header_to_file()
  w.write_kv_data_to_file()
  w.write_tensors_to_file()
  w.close()


@pytest.mark.parametrize('kind', list(TYPES), ids=lambda kind: kind.name)
def test_a_weight_equals_the_scalar_reading_of_its_blocks(kind, tmp_path):
  raw = random_blocks(kind)
  write(tmp_path / 'm.gguf', kind, raw)
  params, *_ = gguf_io.load_gguf(tmp_path / 'm.gguf')
  read, size, width, _ = TYPES[kind]
  want = [[read(row[b * width:(b + 1) * width], e) for b in range(D_MODEL // size) for e in range(size)]
          for row in map(bytes, raw)]
  np.testing.assert_array_equal(params['layers']['w_up'][0].T, np.array(want, np.float32))
  assert len(np.unique(want)) > 100


@pytest.mark.parametrize('kind', [Kind.Q8_K, Kind.I32, Kind.F64], ids=lambda kind: kind.name)
def test_an_unreadable_type_is_named_with_its_tensor(kind, tmp_path):
  size, width = gguf.GGML_QUANT_SIZES[kind]
  dtype = {Kind.I32: np.int32, Kind.F64: np.float64}.get(kind, np.uint8)
  write(tmp_path / 'm.gguf', kind, np.zeros((D_FF, D_MODEL // size * width), np.uint8).view(dtype))
  with pytest.raises(EagrlError, match=rf'{TESTED}.*{kind.name}') as error:
    gguf_io.load_gguf(tmp_path / 'm.gguf')
  assert '\n' not in str(error.value)


def header(tensors=0, fields=0, rest=b''):
  return b'GGUF' + struct.pack('<IQQ', 3, tensors, fields) + rest


def text(value):
  return struct.pack('<Q', len(value)) + value


def tensor(dims, kind=Kind.F32, offset=0):
  return text(b'token_embd.weight') + struct.pack(f'<I{len(dims)}QIQ', len(dims), *dims, kind, offset)


HUGE = 2**60
PROMISES = {
    'fields': header(fields=HUGE),
    'tensors': header(tensors=HUGE),
    'a key of a string': header(fields=1, rest=struct.pack('<Q', HUGE)),
    'a string': header(fields=1, rest=text(b'a') + struct.pack('<IQ', 8, HUGE)),
    'an array of bytes': header(fields=1, rest=text(b'a') + struct.pack('<IIQ', 9, 0, HUGE)),
    'an array of strings': header(fields=1, rest=text(b'a') + struct.pack('<IIQ', 9, 8, HUGE)),
    'an array of arrays': header(fields=1, rest=text(b'a') + struct.pack('<I', 9) + struct.pack('<IQ', 9, HUGE) * 5000),
    'dimensions': header(tensors=1, rest=text(b'token_embd.weight') + struct.pack('<I', 2**31)),
    'elements': header(tensors=1, rest=tensor((HUGE,))),
    'elements of blocks': header(tensors=1, rest=tensor((HUGE,), Kind.Q4_K)),
    'elements that wrap to none': header(tensors=1, rest=tensor((2**32, 2**32))),
    'an offset': header(tensors=1, rest=tensor((1,), offset=HUGE)),
    'an offset that wraps': header(tensors=1, rest=tensor((1,), offset=2**64 - 32)),
    'an unknown type': header(tensors=1, rest=tensor((1,), kind=10**6)),
}


@pytest.fixture
def two_seconds():
  """Ends what runs longer, so that an endless loop fails instead of filling the memory."""
  def stop(*_):
    raise AssertionError('took longer than 2 s')

  before = signal.signal(signal.SIGALRM, stop)
  signal.setitimer(signal.ITIMER_REAL, 2)
  yield
  signal.setitimer(signal.ITIMER_REAL, 0)
  signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize('what', list(PROMISES))
def test_a_header_that_promises_too_much_is_refused(what, tmp_path, two_seconds):
  path = tmp_path / 'm.gguf'
  path.write_bytes(PROMISES[what].ljust(1024, b'\0'))
  refused_cheaply(path, r'm\.gguf is not a readable GGUF')


@pytest.mark.parametrize('field', ['block_count', 'embedding_length', 'feed_forward_length', 'attention.head_count',
                                   'attention.head_count_kv', 'attention.key_length'])
@pytest.mark.parametrize('value', [0, HUGE, 'many'])
def test_metadata_that_its_tensors_do_not_bear_out_is_refused(field, value, tmp_path, two_seconds):
  path = tmp_path / 'm.gguf'
  write(path, **{field: value})
  refused_cheaply(path, r'm\.gguf|lm\.')


def test_a_partial_rotation_is_refused(tmp_path):
  write(tmp_path / 'm.gguf', **{'attention.key_length': 2, 'rope.dimension_count': 1})
  refused_cheaply(tmp_path / 'm.gguf', r'rope\.dimension_count')


def test_a_merge_outside_of_the_vocabulary_is_refused(tmp_path):
  write(tmp_path / 'm.gguf', vocab=[t for t in VOCAB if t != 'ab'])
  refused_cheaply(tmp_path / 'm.gguf', r'no tokenizer can be built.*`ab`')


def refused_cheaply(path, message):
  tracemalloc.start()
  try:
    with pytest.raises(EagrlError, match=message) as error:
      gguf_io.load_gguf(path)
    assert tracemalloc.get_traced_memory()[1] < 2**23
  finally:
    tracemalloc.stop()
  assert '\n' not in str(error.value)
