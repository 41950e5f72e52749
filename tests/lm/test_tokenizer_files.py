"""Tokenizers of a Hugging Face directory: SentencePiece's own file, names in other files, what is put before a text."""

from __future__ import annotations

import base64
import json
import pathlib

import pytest
import tokenizers
from tokenizers import processors

from eagrl_jax.lm.tokenizer import Tokenizer, train_tokenizer
from eagrl_jax.types import EagrlError

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / 'golden' / 'sentencepiece.json').read_text('utf-8'))
FILE = base64.b64decode(GOLDEN['file'])
N = len(GOLDEN['pieces'])


def of_pieces(folder, change=b'', **files):
  """A directory without tokenizer.json; protocol buffers that stand behind one another are one, the last field wins."""
  folder.mkdir(exist_ok=True)
  (folder / 'tokenizer.model').write_bytes(FILE + change)
  for name, content in files.items():
    (folder / f'{name}.json').write_text(json.dumps(content))
  return folder


def test_a_sentencepiece_file_gives_sentencepieces_own_ids(tmp_path):
  assert {'Hello world', '  two  spaces ', ' a'} <= set(GOLDEN['texts'])
  words = Tokenizer.load(of_pieces(tmp_path / 'a'))
  assert [words.encode(text) for text in GOLDEN['texts']] == GOLDEN['ids']
  assert [words.decode(ids) for ids in GOLDEN['ids']] == [text.replace('▁', ' ') for text in GOLDEN['texts']]
  assert (words.eos_id, words.bos_id, words.begin_ids) == (GOLDEN['eos'], GOLDEN['bos'], [GOLDEN['bos']])
  words.save(tmp_path / 'b')
  again = Tokenizer.load(tmp_path / 'b')
  assert [again.encode(text) for text in GOLDEN['texts']] == GOLDEN['ids'] and again.begin_ids == words.begin_ids
  plain = Tokenizer.load(of_pieces(tmp_path / 'a', b'\x1a\x02\x18\x00'))  # add_dummy_prefix: false
  assert [plain.encode(text) for text in GOLDEN['texts']] == [words.encode(t, continues=True) for t in GOLDEN['texts']]


@pytest.mark.parametrize('files', [
    {'tokenizer_config': {'added_tokens_decoder': {str(N): {'content': '<|im_end|>', 'special': True},
                                                   str(N + 1): {'content': '<think>', 'special': False}}}},
    {'tokenizer_config': {'eos_token': '<|im_end|>'}, 'added_tokens': {'<|im_end|>': N, '<think>': N + 1}},
    {'special_tokens_map': {'additional_special_tokens': ['<|im_end|>']}, 'added_tokens': {'<|im_end|>': N,
                                                                                           '<think>': N + 1}}])
def test_tokens_added_to_a_sentencepiece_file_are_whole_and_special_as_named(tmp_path, files):
  words = Tokenizer.load(of_pieces(tmp_path, **files))
  assert [i for i in words.encode('lactate<think>a<|im_end|>') if i >= N] == [N + 1, N]
  assert '<think>' in words._fast.decode([N, N + 1]) and '<|im_end|>' not in words._fast.decode([N, N + 1])
  assert words.stop_ids == ((N,) if 'eos_token' in files.get('tokenizer_config', {}) else (GOLDEN['eos'],))


def test_what_follows_a_special_token_gets_its_space_as_the_file_says(tmp_path):
  spelled = lambda words: words.spelled(words.encode('a</s> b</s>c'))
  assert spelled(Tokenizer.load(of_pieces(tmp_path))) == ' a</s>  b</s> c'
  assert spelled(Tokenizer.load(of_pieces(tmp_path, tokenizer_config={'legacy': False}))) == ' a</s> b</s>c'


@pytest.mark.parametrize(('change', 'said'), [
    (b'\x12\x02\x18\x01', 'a model other than BPE is not supported'),
    (b'\x1a\x03\x12\x01a', 'a table that rewrites characters'), (b'\x1a\x02\x20\x01', 'white space that it removes'),
    (b'\x1a\x02\x28\x00', 'spaces that it leaves'), (b'\x12\x03\xc0\x01\x01', 'spaces behind words'),
    (b'\x0a\x05\x0a\x01z\x18\x05', 'unused pieces'), (b'IQ== 0\n', 'not a readable SentencePiece model'),
    (b'\x0a\x7f', 'not a readable SentencePiece model'), (b'\x0a', 'not a readable SentencePiece model'),
    (b'\x0a\x08\x0a\x01z\x15\x00\x00\xc0\x7f', 'not a readable SentencePiece model')])  # a score that is no number
def test_a_sentencepiece_file_that_is_not_computed_is_refused(tmp_path, change, said):
  with pytest.raises(EagrlError, match=rf'^tokenizer\.model.*{said}.*; convert it to tokenizer\.json') as error:
    Tokenizer.load(of_pieces(tmp_path, change))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('files', [
    {'tokenizer_config': {'added_tokens_decoder': {str(N + 1): {'content': '<a>'}}}},
    {'tokenizer_config': {'added_tokens_decoder': {'x': {'content': '<a>'}}}}, {'added_tokens': {'<a>': 'x'}},
    {'tokenizer_config': {'added_tokens_decoder': [5]}}, {'added_tokens': {'<a>': N, '<b>': '7'}}])
def test_added_tokens_that_do_not_follow_the_pieces_are_refused(tmp_path, files):
  with pytest.raises(EagrlError, match='the added tokens are not those of tokenizer.model') as error:
    Tokenizer.load(of_pieces(tmp_path, **files))
  assert '\n' not in str(error.value)


@pytest.fixture(scope='module')
def tokenizer():
  return train_tokenizer(['a lactate of 3.8'], ['lactate'], 300)


def edit(folder, **changes):
  file = folder / 'tokenizer_config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def with_begin(tokenizer, folder, **config):
  """Saved with a post-processor that puts `<s>` before a text and `</s>` behind it; its id."""
  tokenizer.save(folder)
  fast = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  fast.add_special_tokens(['<s>', '</s>'])
  special = [(token, fast.token_to_id(token)) for token in ('<s>', '</s>')]
  fast.post_processor = processors.TemplateProcessing(single='<s> $A </s>', special_tokens=special)
  fast.save(str(folder / 'tokenizer.json'))
  edit(folder, **{'bos_token': '<s>'} | config)
  return fast.token_to_id('<s>')


@pytest.mark.parametrize(('config', 'begins'), [
    ({}, True), ({'add_bos_token': False}, True), ({'bos_token': None}, True),
    ({'chat_template': '{{ messages[0].content }}'}, False)])
def test_a_prompt_begins_as_transformers_begins_it(tokenizer, tmp_path, config, begins):
  """With tokenizer.json, by its post-processor alone; a chat template writes its own."""
  begin = with_begin(tokenizer, tmp_path / 'a', **config)
  words = Tokenizer.load(tmp_path / 'a')
  assert words.begin_ids == [begin] * begins
  words.save(tmp_path / 'b')
  assert Tokenizer.load(tmp_path / 'b').begin_ids == words.begin_ids
  for folder in ('a', 'b'):
    theirs = pytest.importorskip('transformers').AutoTokenizer.from_pretrained(tmp_path / folder)
    assert theirs('a lactate')['input_ids'] == [begin, *words.encode('a lactate'), begin + 1]


def test_a_sentencepiece_file_begins_as_its_config_says(tmp_path):
  begin = lambda **config: Tokenizer.load(of_pieces(tmp_path, tokenizer_config=config)).begin_ids
  assert begin() == begin(add_bos_token=True) == [GOLDEN['bos']]
  assert begin(add_bos_token=False) == begin(bos_token='<none>') == []


def test_a_tokenizer_of_our_own_begins_with_nothing(tokenizer):
  assert tokenizer.begin_ids == []


def test_a_begin_token_beyond_the_embedding_is_refused(tokenizer, tmp_path):
  begin = with_begin(tokenizer, tmp_path, bos_token=None)
  with pytest.raises(EagrlError, match=f"embedding has {begin} rows.*'<s>'"):
    Tokenizer.load(tmp_path).within(begin)


def test_names_are_looked_for_in_the_older_file_too(tokenizer, tmp_path):
  tokenizer.save(tmp_path)
  (tmp_path / 'tokenizer_config.json').write_text('{"pad_token": "<|pad|>"}')
  (tmp_path / 'special_tokens_map.json').write_text('{"eos_token": {"content": "<|end|>"}, "pad_token": "lactate"}')
  words = Tokenizer.load(tmp_path)
  assert (words.eos_id, words.pad_id) == (tokenizer.eos_id, tokenizer.pad_id)


def test_named_templates_have_one_for_plain_chat(tokenizer, tmp_path):
  tokenizer.save(tmp_path)
  named = [{'name': 'tools', 'template': 'no'}, {'name': 'default', 'template': '<{{ messages[0].content }}>'}]
  edit(tmp_path, chat_template=named)
  assert Tokenizer.load(tmp_path).apply_chat('hello') == '<hello>'
  edit(tmp_path, chat_template=named[:1])
  with pytest.raises(EagrlError, match=r'chat_template is a list without one named default'):
    Tokenizer.load(tmp_path)


def test_a_saved_tokenizer_leaves_no_template_or_names_of_another(tokenizer, tmp_path):
  (tmp_path / 'chat_template.jinja').write_text('another {{ messages[0].content }}')
  (tmp_path / 'special_tokens_map.json').write_text(json.dumps({'bos_token': tokenizer.decode([5])}))
  tokenizer.save(tmp_path)
  assert Tokenizer.load(tmp_path).apply_chat('hello') == 'hello'
  assert Tokenizer.load(tmp_path).special_ids() == tokenizer.special_ids()


def test_transformers_samples_what_is_saved_from_the_whole_distribution(tokenizer, tmp_path):
  transformers = pytest.importorskip('transformers')
  tokenizer.save(tmp_path)
  theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
  assert (theirs.do_sample, theirs.temperature, theirs.top_k, theirs.top_p) == (True, 1.0, 0, 1.0)
  names = json.loads((tmp_path / 'tokenizer_config.json').read_text())['model_input_names']
  given = transformers.AutoTokenizer.from_pretrained(tmp_path)('a lactate')
  assert [*given] == names == ['input_ids', 'attention_mask']  # transformers 4 adds one without them
