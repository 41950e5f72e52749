"""The tokenizer of a GGUF file, as llama.cpp builds it from the metadata."""

from __future__ import annotations

import math

import gguf
import tokenizers
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers

from eagrl_jax.lm import beginning, bpe, sentencepiece
from eagrl_jax.lm.gguf_file import Metadata
from eagrl_jax.lm.tokenizer import Tokenizer
from eagrl_jax.types import EagrlError

TIKTOKEN_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
                  r'| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+')
TEKKEN_SPLIT = (r'[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+'
                r'|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*'
                r'|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+')
SPLITS = {'qwen2': TIKTOKEN_SPLIT.format(digits=''), 'llama-bpe': TIKTOKEN_SPLIT.format(digits='{1,3}'),
          'tekken': TEKKEN_SPLIT}
BEGIN = ('llama-bpe', 'tekken')  # splits of tokenizers that put a begin token, and merge whole words first
# Tokens at which llama.cpp ends an answer by their text (llama-vocab.cpp, special_eog_ids), but for those of
# architectures that are not read: of a turn or a text, then of a file, a repository or padding between pieces of code.
ENDS = frozenset(('<|eot_id|>', '<|im_end|>', '<|end|>', '<end_of_turn>', '<|endoftext|>', '</s>', '<|eom_id|>',
                  '<EOT>', '_<EOT>', '[EOT]', '[EOS]', '<|end_of_text|>', '<end_of_utterance>', '<eos>',
                  '<\uff5cend\u2581of\u2581sentence\uff5c>', '<|fim_pad|>', '<fim-pad>', '<fim_pad>', '<PAD>', '[PAD]',
                  '<|fim_repo|>', '<|repo_name|>', '<fim-repo>', '<REPO>', '<reponame>', '<|file_sep|>'))


def build(meta: Metadata) -> Tokenizer:
  """The tokenizer that `tokenizer.ggml.*` describe.

  Raises:
    EagrlError: names the field that is missing, impossible or not supported.
  """
  builders = {'gpt2': _byte_level, 'llama': _sentencepiece}
  name = meta['tokenizer.ggml.model']
  if not isinstance(name, str) or name not in builders:
    raise EagrlError(f'tokenizer.ggml.model={name!r:.40} is not supported; use a model with a byte-level (gpt2) or'
                     ' SentencePiece (llama) BPE tokenizer, or the Hugging Face folder of this one')
  try:
    if len(meta['tokenizer.ggml.token_type']) != len(meta['tokenizer.ggml.tokens']):
      raise EagrlError(f'{meta.file}: tokenizer.ggml.token_type and tokenizer.ggml.tokens differ in length; download'
                       ' the file again')
    return _with_special_tokens(builders[name](meta), meta)
  except EagrlError:
    raise
  except BaseException as e:  # the library raises bare Exception
    bpe.refuse_others(e)
    raise EagrlError(f'{meta.file}: no tokenizer can be built of tokenizer.ggml.* ({str(e)!r:.80}); download the file'
                     ' again') from e


def _whole_tokens(meta: Metadata) -> list[AddedToken]:
  """Those that no text is merged into and none is cut out of; a user's are text, such as <think>, and no signs."""
  signs = (gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN)
  return [AddedToken(t, special=kind in signs or t in ENDS, normalized=False) for t, kind in zip(
      meta['tokenizer.ggml.tokens'], meta['tokenizer.ggml.token_type'])
          if kind in (*signs, gguf.TokenType.USER_DEFINED)]


def _byte_level(meta: Metadata) -> tokenizers.Tokenizer:
  vocab = {t: i for i, t in enumerate(meta['tokenizer.ggml.tokens'])}
  merges = [tuple(m.split(' ', 1)) for m in meta['tokenizer.ggml.merges']]
  split = meta.get('tokenizer.ggml.pre', 'default')
  fast = bpe.build(vocab, merges, split=_pre_tokenizer(split), whole=_whole_tokens(meta),
                   ignore_merges=split in BEGIN)
  if split == 'qwen2':
    fast.normalizer = normalizers.NFC()
  return fast


def _sentencepiece(meta: Metadata) -> tokenizers.Tokenizer:
  """With the space that llama.cpp puts before a text unless the file says otherwise."""
  tokens, scores = meta['tokenizer.ggml.tokens'], meta['tokenizer.ggml.scores']
  if len(scores) != len(tokens):
    raise EagrlError(f'{meta.file}: tokenizer.ggml.scores has {len(scores)} numbers for {len(tokens)} tokens; download'
                     ' the file again')
  if not all(math.isfinite(score) for score in scores):
    raise EagrlError(f'{meta.file}: tokenizer.ggml.scores has numbers that are not finite; download the file again')
  return sentencepiece.build(tokens, scores, whole=_whole_tokens(meta), unknown=_special_token(meta, 'unknown'),
                             puts_space=_flag(meta, 'add_space_prefix', True))


def _flag(meta: Metadata, name: str, default: bool) -> bool:
  value = meta.get(f'tokenizer.ggml.{name}', default)
  if not isinstance(value, bool):
    raise EagrlError(f'{meta.file}: tokenizer.ggml.{name}={value!r:.40} is neither true nor false; download the file'
                     ' again')
  return value


def _special_id(meta: Metadata, name: str) -> int | None:
  """The token that the file calls so, None where it names none."""
  n, key = len(meta['tokenizer.ggml.tokens']), f'tokenizer.ggml.{name}_token_id'
  i = meta.get(key)
  if i is not None and not (type(i) is int and 0 <= i < n):
    raise EagrlError(f'{meta.file}: {key}={i!r:.40} is none of the {n} tokens; download the file again')
  return i


def _special_token(meta: Metadata, name: str) -> str | None:
  i = _special_id(meta, name)
  return None if i is None else meta['tokenizer.ggml.tokens'][i]


def _with_special_tokens(fast: tokenizers.Tokenizer, meta: Metadata) -> Tokenizer:
  eos, pad, bos = (_special_token(meta, k) for k in ('eos', 'padding', 'bos'))
  if eos is None:
    raise EagrlError(f'{meta.file}: tokenizer.ggml.eos_token_id is missing; download the file again')
  template = meta.get('tokenizer.chat_template')
  if not isinstance(template, str | None):
    raise EagrlError(f'{meta.file}: tokenizer.chat_template is no text; download the file again')
  begins = meta['tokenizer.ggml.model'] == 'llama' or meta.get('tokenizer.ggml.pre') in BEGIN
  if _flag(meta, 'add_bos_token', begins) and bos is not None:
    beginning.write(fast, bos)
  ends = [_special_id(meta, k) for k in ('eot', 'eom', 'fim_pad', 'fim_rep', 'fim_sep')]
  ends += [i for i, token in sorted(fast.get_added_tokens_decoder().items()) if token.content in ENDS]
  return Tokenizer(fast, eos, pad, bos, template, [i for i in ends if i is not None])


def _pre_tokenizer(kind: str) -> pre_tokenizers.PreTokenizer:
  """The splits behind llama.cpp's names for them."""
  if kind == 'smollm':
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False)])
  if kind not in SPLITS:
    raise EagrlError(f'tokenizer.ggml.pre={kind!r} is not supported; use one of smollm, {", ".join(SPLITS)}, or the'
                     ' Hugging Face folder of this model')
  return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLITS[kind]), 'isolated'),
                                  pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
