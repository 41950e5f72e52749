"""Text to token ids and back, over the `tokenizers` library; files are those of Hugging Face."""

from __future__ import annotations

import codecs
import functools
import json
from collections.abc import Collection, Iterable
from pathlib import Path

import jinja2
import numpy as np
import tokenizers

from eagrl_jax.lm import beginning, bpe, chat_template, sentencepiece, tokenizer_files
from eagrl_jax.types import EagrlError

_BEFORE = ('\n', '.', '1')  # texts whose tokens are looked for in front of another's
_WORDS = 'WORDS'  # of an assistant, to see what a template writes behind them
_WHOLE = {'do_sample': True, 'temperature': 1.0, 'top_k': 0, 'top_p': 1.0}  # transformers' own top_k is 50
_BYTE_OF = bpe.byte_characters()
_CONTINUES = frozenset([b'', *(bytes([b]) for b in range(0x80, 0xc0))])  # a UTF-8 character that has begun


class Tokenizer:
  """A fast tokenizer with its end and padding tokens and, if the model has one, its chat template.

  `encode` adds nothing to a text: what stands before a prompt is of the template or `begin_ids`.

  Attributes:
    eos_id: what we write at the end of an answer: of `stop_ids` the one with which the template closes an assistant's
      turn, else the tokenizer's own.
    stop_ids: all that end an answer, `eos_id` first. Chat models have several: the end of a turn and that of a text.
  """

  def __init__(self, fast: tokenizers.Tokenizer, eos: str, pad: str | None = None, bos: str | None = None,
               template: str | None = None, stop_ids: Iterable[int] = ()):
    fast.no_padding()
    fast.no_truncation()
    self._fast = fast
    self._eos = eos
    self._names = {'eos_token': eos, 'pad_token': pad or eos, 'bos_token': bos}
    self._template = template
    eos_id, pad_id = fast.token_to_id(eos), fast.token_to_id(pad or eos)
    if eos_id is None or pad_id is None:
      raise EagrlError('tokenizer: eos_token or pad_token is not in the vocabulary; correct tokenizer_config.json')
    ends = dict.fromkeys([eos_id, *(i for i in stop_ids if fast.id_to_token(i) is not None)])
    self.eos_id: int = self._end_of_turn(ends, eos_id)
    self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys([self.eos_id, *ends]))
    self.pad_id: int = pad_id
    self.bos_id: int | None = None if bos is None else fast.token_to_id(bos)
    self.vocab_size: int = fast.get_vocab_size()
    self._added = {i: token.content for i, token in fast.get_added_tokens_decoder().items()}
    self._byte_level = 'ByteLevel' in repr(fast.decoder)

  def encode(self, text: str, *, continues: bool = False) -> list[int]:
    """Ids of `text`; special tokens written out in it become their ids. `continues`: see `encode_with_offsets`."""
    return self.encode_with_offsets(text, continues=continues)[0]

  def encode_with_offsets(self, text: str, *, continues: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids, and for each the half-open range of characters of `text` that it covers.

    Args:
      continues: something stands before it, so the space that SentencePiece models put before a text is left out;
        behind a special token too, where some of them put it all the same: what is searched, taught and asked for
        begins with the same token everywhere.

    Raises:
      EagrlError: the tokenizer merges every text that could stand before it with its beginning.
    """
    if not continues or not self._puts_space or not text:
      encoding = self._fast.encode(text, add_special_tokens=False)
      return encoding.ids, encoding.offsets
    for before, ids in self._anchors:
      whole, n = self._fast.encode(before + text, add_special_tokens=False), len(ids)
      if whole.ids[:n] == ids and _spaces(self.spelled(whole.ids[n:])) == _spaces(text):
        return whole.ids[n:], [(a - len(before), b - len(before)) for a, b in whole.offsets[n:]]
    # What it was may be of a patient's record.
    raise EagrlError('lm.checkpoint: its tokenizer merges the beginning of an answer with all that could stand before'
                     ' it; use a byte-level tokenizer')

  def decode(self, ids: Iterable[int]) -> str:
    """Text of `ids`, special tokens included; inverse of `encode` for byte-level vocabularies."""
    return self._fast.decode([int(i) for i in ids], skip_special_tokens=False)

  def decode_with_offsets(self, ids: Iterable[int]) -> tuple[str, np.ndarray]:
    """The text of `ids` without end tokens, and of each id the half-open range of characters it has a byte of. `[n, 2]`

    A character that several tokens spell belongs to each; the space before a first word is kept.
    """
    reader = codecs.getincrementaldecoder('utf-8')('replace')
    text, spans = '', []
    for token in map(int, ids):
      data = b'' if token in self.stop_ids else self._bytes(token)
      broken = bool(reader.getstate()[0]) and data[:1] not in _CONTINUES  # the character before ends here, unfinished
      begin = len(text) + broken
      text += reader.decode(data)
      spans.append((begin, len(text) + bool(reader.getstate()[0])))
    return text + reader.decode(b'', final=True), np.array(spans, np.int64).reshape(-1, 2)

  def piece(self, token: int) -> str:
    """Text of one token, its leading space kept; an incomplete UTF-8 sequence gives U+FFFD, no token ''."""
    return self.spelled([token])

  def spelled(self, ids: Iterable[int]) -> str:
    """What tokens write one after another: `decode` with the first one's leading space."""
    return b''.join(self._bytes(int(i)) for i in ids).decode('utf-8', 'replace')

  def _bytes(self, token: int) -> bytes:
    if token in self._added:
      return self._added[token].encode()
    raw = self._fast.id_to_token(token)
    if raw is None:
      return b''
    if self._byte_level:  # with a character of another alphabet it stands for itself, as the library has it
      known = all(c in _BYTE_OF for c in raw)
      return bytes(_BYTE_OF[c] for c in raw) if known else raw.encode()
    if sentencepiece.BYTE.fullmatch(raw):
      return bytes([int(raw[3:5], 16)])
    return raw.replace(sentencepiece.SPACE, ' ').encode()

  @functools.cached_property
  def begin_ids(self) -> list[int]:
    """What a prompt begins with: what the tokenizer puts before a text, nothing where a chat template writes it."""
    return beginning.read(self._fast) if self._template is None else []

  @functools.cached_property
  def _puts_space(self) -> bool:
    return self.spelled(self.encode('x')).startswith(' ')

  @functools.cached_property
  def _anchors(self) -> list[tuple[str, list[int]]]:
    """Texts to put before another one, and their ids."""
    return [(before, ids) for before in _BEFORE if (ids := self.encode(before))]

  def apply_chat(self, prompt: str) -> str:
    """`prompt` as one user turn, up to where the assistant begins; unchanged without a template."""
    if self._template is None:
      return prompt
    try:
      return chat_template.render(self._template, [('user', prompt)], self._names, add_generation_prompt=True)
    except Exception as e:  # it is a program of the checkpoint's
      # What it says may hold the prompt, and so a patient's values: a string of the template's own does not.
      own = str(e) and any(f'{q}{e}{q}' in self._template for q in '"\'')
      own = own or isinstance(e, jinja2.TemplateSyntaxError)
      said = ' '.join(str(e).split()) if own else type(e).__name__
      raise EagrlError(f'tokenizer: chat_template cannot be rendered ({said}); correct tokenizer_config.json') from None

  def _end_of_turn(self, ends: Collection[int], eos_id: int) -> int:
    """The first of `ends` that the template writes behind an assistant's words."""
    if self._template is None or len(ends) == 1:
      return eos_id
    try:
      turns = [('user', 'Q'), ('assistant', _WORDS)]
      text = chat_template.render(self._template, turns, self._names, add_generation_prompt=False)
    except Exception:  # said by `apply_chat`, if that fails too
      return eos_id
    _, found, behind = text.rpartition(_WORDS)
    return next((i for i in self.encode(behind) if i in ends), eos_id) if found else eos_id

  def within(self, rows: int) -> Tokenizer:
    """The tokenizer of a model whose embedding has so many rows: without special tokens that were added beyond them.

    Some checkpoints have a padding token that their weights do not know. What is padded is never looked at: the end
    token does as well.

    Raises:
      EagrlError: other tokens lie beyond, or some that are written: the end, the beginning, those of the chat template.
    """
    names = {t: i for t, i in self._fast.get_vocab().items() if i >= rows}
    if not names:
      return self
    added = self._fast.get_added_tokens_decoder()
    written = {self._eos, self._names['bos_token'], *map(self._fast.id_to_token, self.begin_ids)}
    needed = [t for t, i in sorted(names.items(), key=lambda x: x[1]) if i not in added or not added[i].special
              or t in written or t in (self._template or '')]
    content = json.loads(self._fast.to_str())
    content['added_tokens'] = [t for t in content['added_tokens'] if t['id'] < rows]
    fast = tokenizers.Tokenizer.from_str(json.dumps(content))
    if needed or max(fast.get_vocab().values()) >= rows:
      raise EagrlError(f'lm.checkpoint: the embedding has {rows} rows, and {len(names)} tokens lie beyond, such as'
                       f' {(needed or [*names])[0]!r:.40}; use the tokenizer that belongs to these weights, or enlarge'
                       ' them with transformers: resize_token_embeddings(len(tokenizer))')
    pad = self._names['pad_token']
    return Tokenizer(fast, self._eos, None if pad in names else pad, self._names['bos_token'], self._template,
                     self.stop_ids)

  def special_ids(self) -> dict[str, int | list[int] | None]:
    """The special tokens as a model's `config.json` and `generation_config.json` have them."""
    eos = self.eos_id if len(self.stop_ids) == 1 else list(self.stop_ids)
    return {'bos_token_id': self.bos_id, 'eos_token_id': eos, 'pad_token_id': self.pad_id}

  def save(self, directory: str | Path) -> None:
    """Writes what `load` and transformers read.

    That is `tokenizer.json`, `tokenizer_config.json` and, for the tokens that end an answer, `generation_config.json`.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    self._fast.save(str(directory / 'tokenizer.json'))
    files: dict[str, dict[str, object]] = {
        'tokenizer_config.json': {
            'tokenizer_class': 'PreTrainedTokenizerFast', **self._names, 'chat_template': self._template,
            'model_input_names': ['input_ids', 'attention_mask']},  # without, transformers 4 adds one
        'generation_config.json': {**_WHOLE, **self.special_ids()}}
    for name in (tokenizer_files.TEMPLATE, tokenizer_files.NAMES):  # of another tokenizer, and read in place of ours
      (directory / name).unlink(missing_ok=True)
    for name, content in files.items():
      known = {k: v for k, v in content.items() if v is not None}
      (directory / name).write_text(json.dumps(known, indent=2, ensure_ascii=False) + '\n', 'utf-8')

  @classmethod
  def load(cls, directory: str | Path) -> Tokenizer:
    """Reads what `save` wrote, or a Hugging Face directory.

    Raises:
      EagrlError: no tokenizer there, or one that cannot be read.
    """
    parts = tokenizer_files.read(Path(directory))
    return cls(parts.fast, parts.eos, parts.pad, parts.bos, parts.template, parts.stop_ids)


def _spaces(text: str) -> int:
  """How many a text begins with."""
  return len(text) - len(text.lstrip(f' {sentencepiece.SPACE}'))


def train_tokenizer(texts: Iterable[str], names: Iterable[str], vocab_size: int) -> Tokenizer:
  """The tokenizer of the `tiny` policy; see `bpe.train`."""
  return Tokenizer(bpe.train(texts, names, vocab_size), bpe.EOS, bpe.PAD)
