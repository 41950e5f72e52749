"""What fuzzing found in the readers of checkpoints, one small case each."""

from __future__ import annotations

import json

import gguf
import lm_reference as ref
import numpy as np
import pytest
import test_checkpoints
import test_gguf_quants
from safetensors import numpy as safetensors_numpy

from eagrl_jax.lm import gguf_io, gguf_tokenizer, hf_io
from eagrl_jax.lm.tokenizer import Tokenizer, train_tokenizer
from eagrl_jax.types import EagrlError


@pytest.fixture
def folder(tmp_path):
  words = train_tokenizer(['a lactate'], ['lactate'], 300)
  hf_io.save_hf(tmp_path, test_checkpoints.random_params(ref.CFG), ref.CFG, words)
  return tmp_path


def refused(match, call):
  with pytest.raises(EagrlError, match=match) as caught:
    call()
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('index', [[], {}, {'weight_map': None}, {'weight_map': ['a']}, {'weight_map': {'a': 5}},
                                   {'weight_map': {'a': '../model.safetensors'}}, {'weight_map': {'a': 'b\n'}}])
def test_an_index_that_names_no_files_of_the_directory(folder, index):
  (folder / hf_io.WEIGHTS).unlink()
  (folder / hf_io.INDEX).write_text(json.dumps(index))
  refused(r'model\.safetensors\.index\.json', lambda: hf_io.inspect(folder))


@pytest.mark.parametrize('text', ['[]', '5', 'null', '[' * 100000])
@pytest.mark.parametrize('name', ['config.json', 'tokenizer_config.json'])
def test_a_json_file_that_is_no_table(folder, name, text):
  (folder / name).write_text(text)
  refused(name.replace('.', r'\.'), lambda: hf_io.load_hf(folder))


@pytest.mark.parametrize('name', ['self_attn.q_proj', 'mlp.up_proj', 'mlp.down_proj'])
def test_a_matrix_the_other_way_round_is_refused(folder, name):
  key = f'model.layers.0.{name}.weight'
  tensors = safetensors_numpy.load_file(folder / hf_io.WEIGHTS)
  turned = tensors[key].reshape(tensors[key].shape[::-1] if name != 'self_attn.q_proj' else (1, -1))
  safetensors_numpy.save_file(tensors | {key: np.ascontiguousarray(turned)}, folder / hf_io.WEIGHTS)
  refused(f'{name}.* has shape', lambda: hf_io.load_hf(folder))


@pytest.mark.parametrize('shape', [(1, -1), (-1,), (1, 1, -1)])
def test_so_in_a_gguf_file(tmp_path, monkeypatch, shape):
  original = test_checkpoints.gguf.GGUFWriter.add_tensor
  monkeypatch.setattr(test_checkpoints.gguf.GGUFWriter, 'add_tensor', lambda self, name, x: original(
      self, name, x.reshape(shape) if name == 'blk.0.attn_q.weight' else x))
  test_checkpoints.write_gguf(tmp_path / 'm.gguf', ref.CFG, test_checkpoints.random_params(ref.CFG))
  refused(r"attn_q\.weight' has shape", lambda: gguf_io.read_config(tmp_path / 'm.gguf'))


@pytest.mark.parametrize('change', [{'eos_token': 5}, {'pad_token': ['<|end|>']}, {'chat_template': 5},
                                    {'chat_template': [{'name': 'default', 'template': {}}]}, {'eos_token': {}}])
def test_tokens_and_templates_of_another_kind(folder, change):
  file = folder / 'tokenizer_config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | change))
  refused('tokenizer_config.json', lambda: Tokenizer.load(folder))


def test_named_templates_without_one_for_plain_chat(folder):
  file = folder / 'tokenizer_config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | {'chat_template': [{'name': 'tools'}, 5, {}]}))
  refused('chat_template is a list without one named default', lambda: Tokenizer.load(folder))


@pytest.mark.parametrize('template', [b'{{ 1 / 0 }}', b'{{ messages + 1 }}', b'{{ messages[5].content.x }}',
                                      b'{{ raise_exception("a\nb") }}',
                                      b'{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}',
                                      b'{{ range(10**9) }}', b'{{', b'\xff'])
def test_a_template_that_fails(folder, template):
  (folder / 'chat_template.jinja').write_bytes(template)
  refused('chat_template', lambda: Tokenizer.load(folder).apply_chat('the record of a patient'))


@pytest.mark.parametrize(('template', 'said'), [
    (b'{{ raise_exception("only users speak") }}', '(only users speak)'),
    (b'{{ raise_exception(messages[0].content) }}', '(TemplateError)'),
    (b'{{ raise_exception(messages[0].content[:1]) }}', '(TemplateError)'),  # a letter that the template has too
    (b'{{ raise_exception("") }}', '(TemplateError)'),
    (b'{{ messages[0].content.nothing.x }}', '(UndefinedError)'),
    (b'{% if messages %}', "Jinja was looking for the following tags: 'elif' or 'else' or 'endif'")])
def test_words_of_a_template_are_said_and_those_of_a_record_never(folder, template, said):
  (folder / 'chat_template.jinja').write_bytes(template)
  with pytest.raises(EagrlError) as error:
    Tokenizer.load(folder).apply_chat('the record of a patient')
  assert said in str(error.value) and 'record' not in str(error.value) and error.value.__cause__ is None


def edited(folder, change) -> Tokenizer:
  words = json.loads((folder / 'tokenizer.json').read_text())
  change(words['model'])
  (folder / 'tokenizer.json').write_text(json.dumps(words))
  return Tokenizer.load(folder)


def test_a_token_outside_of_the_byte_alphabet_stands_for_itself(folder):
  size = Tokenizer.load(folder).vocab_size
  words = edited(folder, lambda model: model['vocab'].update({'日': size}))
  assert words.piece(size) == words.decode([size]) == '日'


def test_a_token_that_is_nearly_a_byte(folder):
  tokenizer = json.loads((folder / 'tokenizer.json').read_text())
  tokenizer['decoder'] = None
  (folder / 'tokenizer.json').write_text(json.dumps(tokenizer))
  size = Tokenizer.load(folder).vocab_size
  words = edited(folder, lambda model: model['vocab'].update({'<0xZZ>': size, '<0x41>': size + 1}))
  assert (words.piece(size), words.piece(size + 1)) == ('<0xZZ>', 'A')


def test_a_panic_of_the_library_is_one_line(folder):
  refused(r'tokenizer\.json is not a readable', lambda: edited(
      folder, lambda model: model.update(continuing_subword_prefix='longer than any token')))


def test_a_count_that_is_a_truth_value(tmp_path):
  test_gguf_quants.write(tmp_path / 'm.gguf', block_count=True)
  refused(r"'llama.block_count' is True, no positive number", lambda: gguf_io.read_config(tmp_path / 'm.gguf'))


def test_a_template_in_gguf_that_is_no_text(tmp_path, monkeypatch):
  monkeypatch.setattr(gguf.GGUFWriter, 'add_tokenizer_pre', lambda w, pre: (
      w.add_string('tokenizer.ggml.pre', pre), w.add_uint32('tokenizer.chat_template', 5)))
  test_gguf_quants.write(tmp_path / 'm.gguf')
  refused(r'm\.gguf: tokenizer\.chat_template is no text', lambda: gguf_io.load_gguf(tmp_path / 'm.gguf'))


def test_so_of_a_gguf_file(tmp_path, monkeypatch):
  class PanicException(BaseException):
    pass

  def build(*_, **__):
    raise PanicException

  test_gguf_quants.write(tmp_path / 'm.gguf')
  monkeypatch.setattr(gguf_tokenizer.bpe, 'build', build)
  refused('no tokenizer can be built', lambda: gguf_io.load_gguf(tmp_path / 'm.gguf'))
  monkeypatch.setattr(gguf_tokenizer.bpe, 'build', lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
  with pytest.raises(KeyboardInterrupt):
    gguf_io.load_gguf(tmp_path / 'm.gguf')
