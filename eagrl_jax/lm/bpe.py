"""Byte-level BPE: the one trained for the `tiny` policy, and one rebuilt from the parts of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from eagrl_jax.types import EagrlError

EOS, PAD = '<|end|>', '<|pad|>'
TAG = r' ?</?[A-Z][A-Za-z]*(?: [A-Za-z]+)*(?: \d+)?>'
ALPHABET = 256


def train(texts: Iterable[str], names: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
  r"""Learns merges inside pre-tokens only, so that no token crosses a tag, a name, a digit or a word.

  Pre-tokens: a tag such as `<Answer 1>`, a feature name, a digit, a word or a punctuation mark, each with at most one
  leading space; one white-space character. Decoding is lossless for any text.

  Args:
    texts: the corpus.
    names: feature names; with room in the vocabulary each becomes one token, with and without a leading space.
    vocab_size: upper bound; the 256 bytes and two special tokens are in it.

  Raises:
    EagrlError: `vocab_size` is too small for the bytes.
  """
  check_size(vocab_size)
  names = sorted(set(names), key=lambda name: (-len(name), name))
  fast = tokenizers.Tokenizer(models.BPE())
  fast.pre_tokenizer = pre_tokenizers.Sequence([
      pre_tokenizers.Split(Regex(_pattern(names)), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
  ])
  fast.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[PAD, EOS], show_progress=False,
                                initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
  fast.train_from_iterator(_with_names(texts, names), trainer)
  return fast


def check_size(vocab_size: int) -> None:
  if vocab_size < ALPHABET + 2:
    raise EagrlError(f'lm.vocab_size={vocab_size} is too small; the byte alphabet needs {ALPHABET + 2} or more')


def build(vocab: dict[str, int], merges: list[tuple[str, str]], *, split: pre_tokenizers.PreTokenizer,
          whole: Iterable[AddedToken] = (), ignore_merges: bool = False) -> tokenizers.Tokenizer:
  """A byte-level BPE from its parts; `split` includes the byte-level step, no text is merged into one of `whole`."""
  fast = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=ignore_merges))
  fast.pre_tokenizer = split
  fast.decoder = decoders.ByteLevel()
  fast.add_tokens(list(whole))
  return fast


def refuse_others(error: BaseException) -> None:
  """Raises again what does not come from a fault in a tokenizer's file: a panic of the library is no `Exception`."""
  if not isinstance(error, Exception) and type(error).__name__ != 'PanicException':
    raise error


def byte_characters() -> dict[str, int]:
  """The printable stand-in of each byte in a byte-level vocabulary (GPT-2)."""
  visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  hidden = [b for b in range(256) if b not in visible]
  return {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}


def _pattern(names: list[str]) -> str:
  whole = [rf'{_edge(name[0], "<!")}{re.escape(name)}{_edge(name[-1], "!")}' for name in names]
  return '|'.join([TAG, *([' ?(?:' + '|'.join(whole) + ')'] if whole else []), r' ?\p{N}', r' ?\p{L}+',
                   r' ?[^\s\p{L}\p{N}]', r'\s'])


def _edge(char: str, kind: str) -> str:
  """A name that begins or ends with a letter must not sit inside a longer word."""
  return rf'(?{kind}[\p{{L}}\p{{N}}])' if char.isalnum() else ''


def _with_names(texts: Iterable[str], names: list[str]) -> Iterator[str]:
  yield from texts
  for text in (*names, *'0123456789'):
    yield from (text, ' ' + text)
