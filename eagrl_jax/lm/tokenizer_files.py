"""The tokenizer of a Hugging Face directory, out of those of its files that it has."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from eagrl_jax.lm import beginning, bpe, json_file, sentencepiece, sentencepiece_file
from eagrl_jax.types import EagrlError

FAST, PIECES, CONFIG, NAMES = 'tokenizer.json', 'tokenizer.model', 'tokenizer_config.json', 'special_tokens_map.json'
ADDED, TEMPLATE = 'added_tokens.json', 'chat_template.jinja'
SAID = ('eos_token', 'pad_token', 'bos_token')


@dataclasses.dataclass(frozen=True)
class Parts:
  """What a `Tokenizer` is made of."""

  fast: tokenizers.Tokenizer
  eos: str
  pad: str | None
  bos: str | None
  template: str | None
  stop_ids: list[int]


def read(directory: Path) -> Parts:
  """Of `tokenizer.json`, else of `tokenizer.model`, else of what transformers makes of the others.

  Raises:
    EagrlError: no tokenizer there, or one that cannot be read.
  """
  config, known = json_file.read(directory / CONFIG), json_file.read(directory / NAMES)
  names = {name: _content(known.get(name) if config.get(name) is None else config[name]) for name in SAID}
  if (directory / FAST).is_file():
    fast = _fast(directory / FAST)
  elif (directory / PIECES).is_file():
    model = sentencepiece_file.read(directory / PIECES)
    names |= {name: piece for name, piece in (('eos_token', model.eos), ('bos_token', model.bos)) if not names[name]}
    fast = _of_pieces(directory, config, known, model)
    if config.get('add_bos_token', True) and isinstance(names['bos_token'], str):
      beginning.write(fast, names['bos_token'])
  else:
    slow = _from_transformers(directory)
    fast = slow.backend_tokenizer
    names |= {name: getattr(slow, name) for name in SAID}
  if names['eos_token'] is None:
    raise EagrlError(f'{CONFIG} has no eos_token; add the token that ends an answer')
  template = _template(directory, config)
  if not all(isinstance(x, str | None) for x in (*names.values(), template)):
    raise EagrlError(f'{CONFIG}: its tokens and chat_template must be texts; copy it again from its source')
  return Parts(fast, names['eos_token'], names['pad_token'], names['bos_token'], template, _stop_ids(directory))


def _fast(file: Path) -> tokenizers.Tokenizer:
  try:
    return tokenizers.Tokenizer.from_file(str(file))
  except BaseException as e:  # the library raises bare Exception
    bpe.refuse_others(e)
    raise EagrlError(f'{file.name} is not a readable tokenizer ({e}); copy it again from its source') from e


def _of_pieces(directory: Path, config: dict[str, Any], known: dict[str, Any],
               model: sentencepiece_file.Model) -> tokenizers.Tokenizer:
  """SentencePiece's own pieces, and the tokens that were added behind them: transformers' conversion merges others."""
  special = (sentencepiece_file.CONTROL, sentencepiece_file.UNKNOWN)
  whole = [AddedToken(piece, special=kind in special, normalized=False) for piece, kind in zip(
      model.pieces, model.types) if kind in (*special, sentencepiece_file.USER_DEFINED)]
  unknown = next((p for p, kind in zip(model.pieces, model.types) if kind == sentencepiece_file.UNKNOWN), None)
  fast = sentencepiece.build(model.pieces, model.scores, whole=whole, unknown=unknown, puts_space=model.puts_space,
                             once=config.get('legacy') is False)
  try:
    for i, token in sorted(_added(directory, config, known).items()):
      fast.add_tokens([token])
      if fast.token_to_id(token.content) != i:
        raise ValueError(f'{i} is not the next id')
  except (AttributeError, TypeError, ValueError) as e:
    raise EagrlError(f'{CONFIG} or {ADDED}: the added tokens are not those of {PIECES} ({e}); copy the three again from'
                     ' their source') from e
  return fast


def _added(directory: Path, config: dict[str, Any], known: dict[str, Any]) -> dict[int, AddedToken]:
  """By their ids; in the older of the two files those are special that a name was given to.

  Looked for in the text as it is written: a normalized one would begin with the space that is put before it.
  """
  if 'added_tokens_decoder' in config:
    return {int(i): AddedToken(**token | {'normalized': False}) for i, token in config['added_tokens_decoder'].items()}
  named = [_content(x) for table in (config, known) for x in (
      *(x for name, x in table.items() if name.endswith('_token')), *(table.get('additional_special_tokens') or ()))]
  return {i: AddedToken(text, special=text in named, normalized=False)
          for text, i in json_file.read(directory / ADDED).items()}


def _from_transformers(directory: Path) -> Any:
  import transformers  # slow to import, and needed for the older file layouts only

  try:
    slow = transformers.AutoTokenizer.from_pretrained(str(directory), use_fast=True, local_files_only=True)
    slow.backend_tokenizer  # noqa: B018  a slow tokenizer has none
    return slow
  except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as e:
    raise EagrlError(
        f'lm.checkpoint: no fast tokenizer in {directory.name} ({type(e).__name__}); add its tokenizer.json') from e


def _template(directory: Path, config: dict[str, Any]) -> Any:
  """The one for plain chat, None without any."""
  if (directory / TEMPLATE).is_file():
    try:
      return (directory / TEMPLATE).read_text('utf-8')
    except UnicodeDecodeError as e:
      raise EagrlError(f'{TEMPLATE} is not UTF-8; copy it again from its source') from e
  template = config.get('chat_template')
  if not isinstance(template, list):
    return template
  named = {str(t.get('name')): t.get('template') for t in template if isinstance(t, dict)}
  if template and 'default' not in named:
    raise EagrlError(f'{CONFIG}: chat_template is a list without one named default; name the one for plain chat so')
  return named.get('default')


def _stop_ids(directory: Path) -> list[int]:
  """The tokens that end an answer by the model's own files; of two that name some, transformers takes the first."""
  for name in ('generation_config.json', 'config.json'):
    given = json_file.read(directory / name).get('eos_token_id')
    if given is None:
      continue
    ids = given if isinstance(given, list) else [given]
    if not all(type(i) is int and 0 <= i < 2**31 for i in ids):
      raise EagrlError(f'{name}: eos_token_id={given!r:.40} is neither a token id nor a list of them; correct it')
    return ids
  return []


def _content(token: Any) -> Any:
  return token.get('content') if isinstance(token, dict) else token
