"""Writes tests/golden/sentencepiece.json: a small BPE model as Llama 2's, its file, and its own ids of some texts.

Needs `pip install sentencepiece==0.2.1` in an environment of its own; the tests do not. Run from the repository root:

  path/to/python tests/golden/make_sentencepiece_golden.py
"""

from __future__ import annotations

import base64
import io
import json
import pathlib
import random

import sentencepiece

OUT = pathlib.Path(__file__).with_name('sentencepiece.json')
WORDS = ('lactate urine output bilirubin direct the last value is above its range and rising falling low patient will '
         'die in hospital Is out of How are both very question answer probability platelets eosinophils').split()
TAGS = ('<Subquestion 1>', '</Subquestion 1>\n', '<Answer 2>', '</Answer 2>\n', '<Important Features>', 'HCO3-', '(%)',
        '3.85', '0.75', ', ', '. ', '? ', '\n', 'µmol/L', '10^9', '=')
WILD = ['', ' ', '  two  spaces ', ' a', 'a ', 'naïve 🫀 x²  \t\n\n µmol/L — 漢字', 'pHagocyte; lactates', 'lactate',
        'Lactate', ' lactate', '\nlactate', '<0x41>', '▁', '12345.678', 'ththththth', 'aaaa aaaaa', '\r\n\u00a0\u200d',
        'Hello world']


def texts(n: int, seed: int) -> list[str]:
  draw = random.Random(seed)
  return [''.join(draw.choice([' ' + draw.choice(WORDS)] * 3 + [draw.choice(TAGS)]) for _ in range(draw.randint(1, 30)))
          for _ in range(n)]


def main() -> None:
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(t.replace('\n', ' ') for t in texts(400, 0)), model_writer=model, model_type='bpe',
      vocab_size=500, byte_fallback=True, normalization_rule_name='identity', add_dummy_prefix=True, split_digits=True,
      remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, character_coverage=0.9995, minloglevel=2)
  sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
  n = range(sp.get_piece_size())
  # llama.cpp's types: 1 normal, 2 unknown, 3 control, 6 byte.
  kinds = [2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1 for i in n]
  told = [*WILD, *texts(40, 1)]
  OUT.write_text(json.dumps({
      'version': sentencepiece.__version__, 'file': base64.b64encode(model.getvalue()).decode(),
      'pieces': [sp.id_to_piece(i) for i in n],
      'scores': [sp.get_score(i) for i in n], 'types': kinds, 'unknown': sp.unk_id(), 'bos': sp.bos_id(),
      'eos': sp.eos_id(), 'texts': told, 'ids': [sp.encode(t) for t in told]}, ensure_ascii=False) + '\n', 'utf-8')


if __name__ == '__main__':
  main()
