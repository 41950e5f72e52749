from __future__ import annotations

import json

import pytest
import tokenizers

from eagrl_jax.lm.tokenizer import Tokenizer, train_tokenizer
from eagrl_jax.types import EagrlError

NAMES = ('lactate', 'urine output', '(%)lymphocyte', 'pH', 'GCS', 'GCS total')
TEXT = ('<Subquestion 1> Is the lactate out of range? </Subquestion 1>\n<Answer 12> The last value is 3.85, falling. '
        '</Answer 12>\n<Important Features> urine output, (%)lymphocyte </Important Features>\n')
WILD = ['naïve 🫀 x²  \t\n\n µmol/L — 漢字', 'pHagocyte; lactates', '<|end|> < b > <B', '٣ ½ \r\n\u00a0\u200d', '', ' ',
        TEXT]


@pytest.fixture(scope='module')
def tokenizer():
  return train_tokenizer([TEXT], NAMES, 2000)


def pieces(tokenizer, text):
  return [tokenizer.piece(i) for i in tokenizer.encode(text)]


@pytest.mark.parametrize('text', WILD)
def test_decode_inverts_encode(tokenizer, text):
  assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_tags_and_names_are_single_tokens(tokenizer):
  text = ['GCS total', ' 1', '3', '.', '8', '5', ',', ' urine output']
  assert pieces(tokenizer, ''.join(text)) == text
  for name in NAMES:
    assert pieces(tokenizer, name) == [name] and pieces(tokenizer, ' ' + name) == [' ' + name]
  assert pieces(tokenizer, '<Answer 12>\n') == ['<Answer 12>', '\n']
  assert pieces(tokenizer, 'falling. </Answer 12>')[-1].lstrip() == '</Answer 12>'


def test_a_name_inside_a_longer_word_is_not_cut_out(tokenizer):
  whole = {'pH', ' pH'}
  assert not whole & set(train_tokenizer(['pHagocyte'] * 9, ['pH'], 400)._fast.encode('a pHagocyte').tokens)
  assert ' pH' in pieces(tokenizer, 'the pH is')


def test_offsets_give_back_the_pieces(tokenizer):
  text = TEXT + 'µ 🫀 naïve'
  ids, offsets = tokenizer.encode_with_offsets(text)
  assert ids == tokenizer.encode(text)
  exact = [(tokenizer.piece(i), text[a:b]) for i, (a, b) in zip(ids, offsets) if '\ufffd' not in tokenizer.piece(i)]
  assert len(exact) > 30 and all(piece == span for piece, span in exact)
  assert offsets[0][0] == 0 and offsets[-1][1] == len(text)
  again, spans = tokenizer.decode_with_offsets([*ids, tokenizer.eos_id])
  assert again == text and spans.tolist() == [*map(list, offsets), [len(text)] * 2]


def test_a_broken_character_is_one_sign_and_spans_stay_in_step(tokenizer):
  ids = tokenizer.encode('🫀')
  assert len(ids) > 1, 'a character of several tokens is what this is about'
  text, spans = tokenizer.decode_with_offsets([*ids[:-1], *tokenizer.encode(' lactate')])
  assert text == '\ufffd lactate' and text[slice(*spans[-1])] == ' lactate' and spans[0].tolist() == [0, 1]


def test_save_and_load_give_the_same_tokenizer(tokenizer, tmp_path):
  tokenizer.save(tmp_path)
  again = Tokenizer.load(tmp_path)
  assert [again.encode(t) for t in WILD] == [tokenizer.encode(t) for t in WILD]
  assert (again.eos_id, again.pad_id, again.vocab_size) == (tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size)
  assert again.eos_id != again.pad_id and again.piece(again.eos_id) == '<|end|>'


def test_transformers_reads_what_we_save(tokenizer, tmp_path):
  transformers = pytest.importorskip('transformers')
  tokenizer.save(tmp_path)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert theirs(TEXT, add_special_tokens=False)['input_ids'] == tokenizer.encode(TEXT)
  assert theirs.eos_token_id == tokenizer.eos_id


def test_chat_template(tokenizer, tmp_path):
  assert tokenizer.apply_chat('hello') == 'hello'
  tokenizer.save(tmp_path)
  file = tmp_path / 'tokenizer_config.json'
  template = ("{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
              '{% if add_generation_prompt %}[a]{% endif %}')
  file.write_text(json.dumps(json.loads(file.read_text()) | {'chat_template': template}))
  assert Tokenizer.load(tmp_path).apply_chat('hello') == '[user]hello<|end|>[a]'


def test_a_template_finds_what_transformers_lends_it(tokenizer, tmp_path):
  """No tools and no documents are None, not unknown; a line of a block alone leaves no line."""
  template = """{%- set started = true %}
{% if tools is not none or documents is not none %}
Environment: ipython
{% endif %}
  {% for m in messages %}
<{{ m.role }}> {{ m.content }}
  {% endfor %}
{% if add_generation_prompt %}
<a>{% endif %}"""
  tokenizer.save(tmp_path)
  file = tmp_path / 'tokenizer_config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | {'chat_template': template}))
  text = Tokenizer.load(tmp_path).apply_chat('hello')
  assert text == '<user> hello\n<a>'
  if transformers := pytest.importorskip('transformers'):
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.apply_chat_template([{'role': 'user', 'content': 'hello'}], tokenize=False,
                                      add_generation_prompt=True) == text


CHAT = '{% for m in messages %}<a>{{ m.content }}<turn>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}'


def chat_model(tokenizer, folder, generation=None, config=None, template=CHAT):
  """A checkpoint's folder: its turns end with <turn>, its texts with <|end|>; the ids of both, and of <a>."""
  tokenizer.save(folder)
  fast = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  fast.add_special_tokens(['<a>', '<turn>'])
  fast.save(str(folder / 'tokenizer.json'))
  begin, turn = map(fast.token_to_id, ('<a>', '<turn>'))
  edit = json.loads((folder / 'tokenizer_config.json').read_text()) | {'bos_token': '<a>', 'chat_template': template}
  (folder / 'tokenizer_config.json').write_text(json.dumps(edit))
  (folder / 'generation_config.json').unlink()
  for name, ids in (('generation_config.json', generation), ('config.json', config)):
    if ids is not None:
      text = json.dumps({'eos_token_id': ids}).replace('"turn"', str(turn)).replace('"end"', str(tokenizer.eos_id))
      (folder / name).write_text(text)
  return begin, turn


@pytest.mark.parametrize(('generation', 'config'), [(['turn', 'end'], None), (['turn'], None), (None, ['end', 'turn']),
                                                    (['turn', 70_000], [0])])
def test_an_answer_ends_with_any_token_that_the_model_names(tokenizer, tmp_path, generation, config):
  begin, turn = chat_model(tokenizer, tmp_path / 'a', generation, config)
  found = Tokenizer.load(tmp_path / 'a')
  assert (found.eos_id, found.stop_ids, found.bos_id) == (turn, (turn, tokenizer.eos_id), begin)
  ids = found.encode(' lactate')
  text, spans = found.decode_with_offsets([*ids, turn, *ids, tokenizer.eos_id])
  assert text == ' lactate lactate' and spans[-1].tolist() == [16, 16]
  found.save(tmp_path / 'b')
  again = Tokenizer.load(tmp_path / 'b')
  assert (again.eos_id, again.stop_ids, again.bos_id) == (found.eos_id, found.stop_ids, found.bos_id)
  theirs = pytest.importorskip('transformers').GenerationConfig.from_pretrained(tmp_path / 'b')
  assert (theirs.eos_token_id, theirs.bos_token_id) == ([turn, tokenizer.eos_id], begin)


@pytest.mark.parametrize('template', [None, '{{ messages[0].content }}', '{{ raise_exception("no assistants") }}'])
def test_without_a_turn_in_the_template_an_answer_is_closed_by_the_tokenizers_own_end(tokenizer, tmp_path, template):
  _, turn = chat_model(tokenizer, tmp_path, ['turn'], template=template)
  found = Tokenizer.load(tmp_path)
  assert found.eos_id == tokenizer.eos_id and found.stop_ids == (tokenizer.eos_id, turn)


def with_padding_beyond(tokenizer, folder, names=('[PAD]',), special=True, **config):
  """A tokenizer with so many tokens more than its model has rows, and that number of rows."""
  tokenizer.save(folder)
  fast = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  rows = fast.get_vocab_size()
  fast.add_tokens([tokenizers.AddedToken(name, special=special, normalized=False) for name in names])
  fast.save(str(folder / 'tokenizer.json'))
  file = folder / 'tokenizer_config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | {'pad_token': '[PAD]'} | config))
  return Tokenizer.load(folder), rows


def test_a_padding_token_beyond_the_embedding_is_done_without(tokenizer, tmp_path):
  found, rows = with_padding_beyond(tokenizer, tmp_path / 'a')
  assert found.pad_id == rows and found.within(rows + 1) is found
  kept = found.within(rows)
  assert (kept.pad_id, kept.eos_id, kept.vocab_size) == (tokenizer.eos_id, tokenizer.eos_id, rows)
  assert max(kept.encode('a [PAD] lactate<|end|>')) < rows and kept.encode(TEXT) == tokenizer.encode(TEXT)
  kept.save(tmp_path / 'b')
  assert Tokenizer.load(tmp_path / 'b').within(rows).pad_id == tokenizer.eos_id


@pytest.mark.parametrize(('names', 'special', 'config', 'named'), [
    (('[PAD]', '<new>'), False, {}, r"2 tokens .*'\[PAD\]'"),
    (('[PAD]', '<im>'), True, {'chat_template': '<im>{{ messages[0].content }}'}, "'<im>'"),
    (('[PAD]', '<eos>'), True, {'eos_token': '<eos>'}, "'<eos>'"),
    (('[PAD]', '<bos>'), True, {'bos_token': '<bos>'}, "'<bos>'")])
def test_a_token_beyond_the_embedding_that_may_be_fed_is_refused(tokenizer, tmp_path, names, special, config, named):
  found, rows = with_padding_beyond(tokenizer, tmp_path, names, special, **config)
  with pytest.raises(EagrlError, match=f'embedding has {rows} rows.*{named}.*resize_token_embeddings'):
    found.within(rows)


def test_a_vocabulary_larger_than_the_embedding_is_refused(tokenizer):
  with pytest.raises(EagrlError, match='embedding has 100 rows'):
    tokenizer.within(100)


@pytest.mark.parametrize('ids', ['<turn>', [-1], [1.5], {'a': 1}, [[2]], True])
def test_what_is_no_token_id_is_refused(tokenizer, tmp_path, ids):
  chat_model(tokenizer, tmp_path, generation=ids)
  with pytest.raises(EagrlError, match=r'generation_config\.json: eos_token_id='):
    Tokenizer.load(tmp_path)


@pytest.mark.parametrize(('template', 'text'), [
    ('{{ bos_token }}{{ messages[0].content }}', 'hello'),  # this tokenizer has no begin token
    ('{% for m in [1, 2, 3, 4] %}{% if m == 2 %}{% continue %}{% endif %}{% if m == 4 %}{% break %}{% endif %}{{ m }}'
     '{% endfor %}', '13'),
    ("{% set x = 'a' %}{% generation %}{% set x = 'b' %}{{ x }}{% endgeneration %}{{ x }}", 'ba'),
    ("{{ strftime_now('%d %b %Y') }}", '26 Jul 2024')])
def test_a_template_has_what_transformers_lends_it(tokenizer, tmp_path, template, text):
  tokenizer.save(tmp_path)
  (tmp_path / 'chat_template.jinja').write_text(template)
  assert Tokenizer.load(tmp_path).apply_chat('hello') == text
  theirs = pytest.importorskip('transformers').AutoTokenizer.from_pretrained(tmp_path)
  if 'strftime_now' not in template:  # theirs is of today
    assert theirs.apply_chat_template([{'role': 'user', 'content': 'hello'}], tokenize=False) == text


@pytest.mark.parametrize('template', [
    "{{ raise_exception('no') }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% generation %}{{ ''.__class__.__mro__[1] }}{% endgeneration %}", '{{ strftime_now.__self__.year }}'])
def test_a_template_cannot_leave_its_sandbox(tokenizer, tmp_path, template):
  tokenizer.save(tmp_path)
  (tmp_path / 'chat_template.jinja').write_text(template)
  with pytest.raises(EagrlError, match='chat_template'):
    Tokenizer.load(tmp_path).apply_chat('hello')


def test_bad_tokenizers_are_named(tokenizer, tmp_path):
  with pytest.raises(EagrlError, match='vocab_size=100'):
    train_tokenizer([TEXT], NAMES, 100)
  with pytest.raises(EagrlError, match='tokenizer'):
    Tokenizer.load(tmp_path)
  tokenizer.save(tmp_path)
  (tmp_path / 'tokenizer_config.json').write_text('{}')
  with pytest.raises(EagrlError, match='eos_token'):
    Tokenizer.load(tmp_path)
  (tmp_path / 'tokenizer.json').write_text('{"model": 3}')
  with pytest.raises(EagrlError, match=r'tokenizer\.json'):
    Tokenizer.load(tmp_path)
