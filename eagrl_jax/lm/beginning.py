"""What a tokenizer's post-processor puts before a text: a begin token, in Llama and Mistral."""

from __future__ import annotations

import itertools

import tokenizers
from tokenizers import processors


def read(fast: tokenizers.Tokenizer) -> list[int]:
  """Its ids."""
  whole = fast.encode('x', add_special_tokens=True)
  added = zip(whole.ids, whole.special_tokens_mask)
  return [i for i, _ in itertools.takewhile(lambda pair: pair[1], added)]


def write(fast: tokenizers.Tokenizer, token: str) -> None:
  """Has `token` put there; one that is not in the vocabulary is left out."""
  if (i := fast.token_to_id(token)) is not None:
    fast.post_processor = processors.TemplateProcessing(single=[token, '$A'], special_tokens=[(token, i)])
