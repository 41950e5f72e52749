"""SentencePiece BPE (Llama 2, Mistral) of its pieces and scores, as a tokenizer of the `tokenizers` library."""

from __future__ import annotations

import re
from collections.abc import Iterable

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

SPACE = '\u2581'
BYTE = re.compile('<0x[0-9A-Fa-f]{2}>')


def build(pieces: list[str], scores: list[float], *, whole: Iterable[AddedToken], unknown: str | None,
          puts_space: bool = True, once: bool = False) -> tokenizers.Tokenizer:
  """Merges the neighbours that make the piece of the highest score, leftmost first (Kudo and Richardson 2018).

  Of pieces with one score the first in the vocabulary comes first: merges are numbered as they were learnt, and some
  converters leave the scores out.

  Args:
    pieces: the vocabulary in order, with U+2581 for a space and `<0x..>` for the bytes of what it has no piece for.
    scores: finite, one a piece; those of bytes and of `whole` are not read.
    whole: control and user-defined tokens, never cut nor made by a merge.
    unknown: the token of what has neither piece nor bytes; None drops it.
    puts_space: a text, and what follows a token of `whole`, gets a space before it.
    once: a text alone gets it, and one that begins with a space has it already, as in transformers without `legacy`.

  Returns:
    The tokenizer, which decodes without that space.
  """
  whole = list(whole)
  vocab = {piece: i for i, piece in enumerate(pieces)}
  parts = {piece for piece in vocab.keys() - {token.content for token in whole} if not BYTE.fullmatch(piece)}
  merges = [(-scores[i], i, vocab[piece[:cut]], vocab[piece[cut:]]) for piece, i in vocab.items() if piece in parts
            for cut in range(1, len(piece)) if piece[:cut] in parts and piece[cut:] in parts]
  named = [(pieces[left], pieces[right]) for *_, left, right in sorted(merges)]
  fast = tokenizers.Tokenizer(models.BPE(vocab, named, unk_token=unknown, fuse_unk=True, byte_fallback=True))
  spaces = normalizers.Replace(' ', SPACE)
  fast.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if puts_space and not once else spaces
  if puts_space and once:
    fast.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme='first', split=False)
  fast.decoder = decoders.Sequence([decoders.Replace(SPACE, ' '), decoders.ByteFallback(), decoders.Fuse(),
                                    *([decoders.Strip(' ', 1, 0)] if puts_space else [])])
  fast.add_tokens(whole)
  return fast
