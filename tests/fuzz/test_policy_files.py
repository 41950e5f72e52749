"""Checkpoints: GGUF header and fields, the index of shards, tokenizers and the chat templates that come with them."""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import pathlib
import tempfile

import gguf
import jax
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType as Value
from hypothesis import given
from hypothesis import strategies as st
from material import JSON, damaged, only_our_error

from eagrl_jax.lm import bpe, gguf_io, hf_io, model
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.tokenizer import Tokenizer, train_tokenizer

LM = LMConfig(vocab_size=24, d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=8)
WORDS = [*list(bpe.byte_characters())[64:86], 'ab', '<end>']
FIELDS: dict[str, tuple] = {
    'llama.block_count': (1, Value.UINT32), 'llama.embedding_length': (8, Value.UINT32),
    'llama.feed_forward_length': (8, Value.UINT32), 'llama.attention.head_count': (2, Value.UINT32),
    'llama.attention.head_count_kv': (1, Value.UINT32), 'llama.attention.key_length': (4, Value.UINT32),
    'llama.attention.layer_norm_rms_epsilon': (1e-5, Value.FLOAT32), 'llama.rope.freq_base': (1e4, Value.FLOAT32),
    'tokenizer.ggml.model': ('gpt2', Value.STRING), 'tokenizer.ggml.pre': ('smollm', Value.STRING),
    'tokenizer.ggml.tokens': (WORDS, Value.ARRAY), 'tokenizer.ggml.token_type': ([1] * 23 + [3], Value.ARRAY),
    'tokenizer.ggml.merges': (['a b'], Value.ARRAY), 'tokenizer.ggml.eos_token_id': (23, Value.UINT32),
    'tokenizer.chat_template': ('{{ messages[0].content }}', Value.STRING)}
SENTENCEPIECE: dict[str, tuple] = {
    'tokenizer.ggml.model': ('llama', Value.STRING),
    'tokenizer.ggml.scores': ([-i / 2 for i in range(24)], Value.ARRAY)}
OPTIONAL = ('llama.rope.scaling.type', 'llama.rope.dimension_count', 'tokenizer.ggml.padding_token_id',
            'tokenizer.ggml.bos_token_id', 'tokenizer.ggml.eot_token_id', 'tokenizer.ggml.unknown_token_id',
            'tokenizer.ggml.add_space_prefix', 'tokenizer.ggml.add_bos_token', 'llama.context_length', 'split.count',
            'split.no',
            'general.architecture')
ODD = st.one_of(
    st.tuples(st.sampled_from([0, 1, 2, 4, 8, 23, 24, 10**6, 2**32 - 1]), st.just(Value.UINT32)),
    st.tuples(st.sampled_from([-1, -2**31]), st.just(Value.INT32)),
    st.tuples(st.floats(width=32), st.just(Value.FLOAT32)), st.tuples(st.booleans(), st.just(Value.BOOL)),
    st.tuples(st.sampled_from(['', 'x', 'gpt2', 'qwen2', '{{']), st.just(Value.STRING)),
    st.tuples(st.sampled_from([['a'], ['a', 'a'], WORDS[::-1], [1, 2], [1.5], ['a b c'], [' '], [True]]),
              st.just(Value.ARRAY)))
TENSORS = [('token_embd.weight', (24, 8)), ('output_norm.weight', (8,)), *(
    (f'blk.0.{gguf_io.LAYER[name]}', shape) for name, shape in (
        ('attn_norm', (8,)), ('wq', (8, 8)), ('wk', (4, 8)), ('wv', (4, 8)), ('wo', (8, 8)), ('mlp_norm', (8,)),
        ('w_gate', (8, 8)), ('w_up', (8, 8)), ('w_down', (8, 8))))]
SHAPES = st.sampled_from([(8,), (4, 8), (8, 4), (32,), (64,), (2, 32), (1, 8, 8), (8, 8, 1), (2, 4, 4), (16, 4), (1,),
                          (192,)])


def written(fields: dict[str, tuple], tensors: list[tuple[str, tuple]], kinds: dict[str, Kind]) -> bytes:
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'm.gguf')
    w = gguf.GGUFWriter(path, 'llama')
    for name, (value, kind) in fields.items():
      if name == 'general.architecture':
        w.kv_data[0][name].value, w.kv_data[0][name].type = value, kind
      else:
        w.add_key_value(name, value, kind)
    for name, shape in tensors:
      x = np.ones(shape, np.float32)
      kind = kinds.get(name)
      w.add_tensor(name, x.astype(np.float16) if kind == Kind.F16 else x, raw_dtype=kind if kind == Kind.F16 else None)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path.read_bytes()


@functools.cache
def good() -> bytes:
  return written(FIELDS, TENSORS, {})


def loaded(raw: bytes) -> bool:
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'm.gguf')
    path.write_bytes(raw)
    only_our_error(lambda: gguf_io.read_config(path))
    return only_our_error(lambda: used(gguf_io.load_gguf(path)[2]))


def used(tokenizer: Tokenizer) -> None:
  """What stages do with a tokenizer before anything is trained."""
  tokenizer.decode(tokenizer.encode('a <end> µ'))
  tokenizer.encode_with_offsets(tokenizer.apply_chat('a prompt'))
  only_our_error(lambda: tokenizer.encode('a b', continues=True))
  assert all(isinstance(tokenizer.piece(i), str) for i in (
      *range(min(tokenizer.vocab_size, 400)), *tokenizer.begin_ids))


def test_the_undamaged_file_is_read():
  assert loaded(good()) and loaded(written(FIELDS | SENTENCEPIECE, TENSORS, {}))


@given(st.data())
def test_a_gguf_file_with_damaged_bytes(data):
  loaded(damaged(data, good(), data.draw(st.sampled_from([24, 600, len(good())]))))


@given(st.data())
def test_a_gguf_file_of_any_fields(data):
  fields, tensors, kinds = FIELDS | data.draw(st.sampled_from([{}, SENTENCEPIECE])), list(TENSORS), {}
  for _ in range(data.draw(st.integers(0, 2))):
    fields[data.draw(st.sampled_from([*FIELDS, *SENTENCEPIECE, *OPTIONAL]))] = data.draw(ODD)
  for _ in range(data.draw(st.integers(0, 2))):
    i = data.draw(st.integers(0, len(tensors) - 1))
    name = tensors[i][0]
    other = st.sampled_from([*[name] * 11, gguf_io.ROPE_FACTORS, 'output.weight', 'blk.0.attn_q.bias'])
    tensors[i] = data.draw(other), data.draw(SHAPES)
  kinds = {tensors[0][0]: Kind.F16} if data.draw(st.integers(0, 5)) == 0 else {}
  names = [name for name, _ in tensors]
  if len(set(names)) == len(names):
    loaded(written({k: v for k, v in fields.items() if data.draw(st.integers(0, 40))}, tensors, kinds))


@functools.cache
def folder_of_files() -> dict[str, bytes]:
  cfg = dataclasses.replace(LM, vocab_size=300)
  params = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), model.declare(cfg))
  with tempfile.TemporaryDirectory() as folder:
    hf_io.save_hf(folder, params, cfg, train_tokenizer(['a lactate'], ['lactate'], 300), shard_bytes=9000)
    return {p.name: p.read_bytes() for p in pathlib.Path(folder).iterdir()}


def in_a_folder(content: dict[str, bytes], call) -> None:
  with tempfile.TemporaryDirectory() as folder:
    for name, body in content.items():
      pathlib.Path(folder, name).write_bytes(body)
    only_our_error(lambda: call(folder))


@given(st.data())
def test_an_index_of_anything(data):
  index = json.loads(folder_of_files()[hf_io.INDEX])
  where = index['weight_map']
  odd = st.one_of(JSON, st.sampled_from([
      '../config.json', 'config.json', '/dev/null', '.', '', 'x\0y', 'no.safetensors']))
  for _ in range(data.draw(st.integers(0, 2))):
    where[data.draw(st.sampled_from([*where, 'x']))] = data.draw(odd)
  if data.draw(st.integers(0, 5)) == 0:
    index = data.draw(st.one_of(JSON, JSON.map(lambda x: {'weight_map': x})))
  in_a_folder(folder_of_files() | {hf_io.INDEX: json.dumps(index).encode()},
              lambda folder: (hf_io.inspect(folder), hf_io.load_hf(folder)))


TEMPLATE = st.one_of(st.text(max_size=20), st.lists(st.sampled_from([
    '{{ ', ' }}', '{% for m in messages %}', '{% endfor %}', 'm.content', 'messages', '[0]', '.content', '{% if ',
    ' %}', '{% endif %}', 'raise_exception("no\nway")', '1/0', '"a" * 9', ' + 1', 'x.y.z', '|tojson', '|int',
    'eos_token', 'range(10**9)', '{% set x = ', '{% macro f() %}', '{% endmacro %}', 'f()', '|join', "'%d' % 'x'",
    'none()', '|sort', '-', '|batch(0)']), max_size=8).map(''.join))


@given(st.data())
def test_a_tokenizer_config_of_anything(data):
  files = {name: folder_of_files()[name] for name in ('tokenizer.json', 'tokenizer_config.json')}
  config = json.loads(files['tokenizer_config.json'])
  odd = st.one_of(JSON, st.sampled_from([
      '<|end|>', '<|pad|>', 'x', {'content': '<|end|>'}, {'content': 5}, {}, [{'name': 'default'}],
      [{'name': 'default', 'template': '{{ messages }}'}], [5]]))
  for _ in range(data.draw(st.integers(0, 2))):
    config[data.draw(st.sampled_from(['eos_token', 'pad_token', 'bos_token', 'chat_template']))] = data.draw(odd)
  if data.draw(st.booleans()):
    config['chat_template'] = data.draw(st.one_of(TEMPLATE, st.just('{{ messages[0].content }}' + chr(10))))
  raw = json.dumps(config if data.draw(st.integers(0, 9)) else data.draw(JSON)).encode()
  files['tokenizer_config.json'] = damaged(data, raw) if data.draw(st.integers(0, 9)) == 0 else raw
  if data.draw(st.integers(0, 4)) == 0:
    files['chat_template.jinja'] = data.draw(TEMPLATE).encode('utf8', 'replace')
  if data.draw(st.integers(0, 4)) == 0:
    ends = data.draw(st.one_of(JSON, st.lists(st.integers(0, 310), max_size=3)))
    files['generation_config.json'] = json.dumps({'eos_token_id': ends}).encode()
  in_a_folder(files, lambda folder: used(Tokenizer.load(folder)))


@given(st.data())
def test_a_sentencepiece_file_with_damaged_bytes_and_added_tokens_of_anything(data):
  golden = json.loads((pathlib.Path(__file__).parents[1] / 'golden' / 'sentencepiece.json').read_text('utf-8'))
  raw = base64.b64decode(golden['file'])
  token = st.one_of(JSON, st.fixed_dictionaries({
      'content': st.sampled_from(['<a>', '', 'a']), 'special': st.booleans()}))
  odd = st.one_of(JSON, st.dictionaries(st.sampled_from(['500', '501', '5', '-1', 'x']), token))
  config = {'add_bos_token': data.draw(odd), 'added_tokens_decoder': data.draw(odd)}
  older = {'special_tokens_map.json': {'bos_token': data.draw(odd), 'additional_special_tokens': data.draw(odd)},
           'added_tokens.json': {'<a>': data.draw(st.one_of(JSON, st.just(500)))}}
  files = data.draw(st.sampled_from([{}, {'tokenizer_config.json': config}, older]))
  in_a_folder({'tokenizer.model': damaged(data, raw)} | {k: json.dumps(x).encode() for k, x in files.items()},
              lambda folder: used(Tokenizer.load(folder)))


@given(st.data())
def test_a_tokenizer_of_anything(data):
  words = json.loads(folder_of_files()['tokenizer.json'])
  vocab = words['model']['vocab']
  spots = [(place, k) for place in (words, words['model'], words['added_tokens'][0]) for k in place]
  for _ in range(data.draw(st.integers(0, 2))):
    place, key = data.draw(st.sampled_from(spots))
    place[key] = data.draw(st.one_of(JSON, st.sampled_from([
        {'type': 'ByteLevel', 'add_prefix_space': True, 'trim_offsets': True, 'use_regex': True}, {'a': 0},
        {'<0xZZ>': 3}, [['a', 'b']], 'WordLevel',
        {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': 'always', 'split': True}])))
  if data.draw(st.booleans()):
    vocab[data.draw(st.sampled_from(['日', '<0xZZ>', '<0x41>', '', ' ', 'a\nb', '▁x']))] = data.draw(
        st.sampled_from([0, 5, len(vocab), 10**6, 2**31]))
  config, rows = folder_of_files()['tokenizer_config.json'], data.draw(st.sampled_from([len(vocab), 2**31 + 1]))
  raw = json.dumps(words).encode()
  in_a_folder({'tokenizer.json': damaged(data, raw) if data.draw(st.integers(0, 9)) == 0 else raw,
               'tokenizer_config.json': config},
              lambda folder: used(Tokenizer.load(folder).within(rows)))
