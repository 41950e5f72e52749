"""Tokenizers and automata that the search tests share."""

import functools
import json
import types

import pytest
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from eagrl_jax.lm.tokenizer import Tokenizer, train_tokenizer
from eagrl_jax.search.grammar_compiler import GrammarConfig, compile_grammar

NAMES = ('lactate', 'urine output', 'bilirubin', 'direct bilirubin', 'mean corpuscular hemoglobin',
         'mean corpuscular hemoglobin concentration', 'eosinophils(%)', 'HCO3-', 'γ-glutamyl transpeptidase', 'pH')
FINAL = 'Now we can answer the question: will the patient die in hospital?'
ANSWER = (
    '<Subquestion 1> Is the lactate out of range? </Subquestion 1>\n'
    '<Answer 1> The last value is 3.8, above its range, and rising. </Answer 1>\n'
    '<Subquestion 2> How are HCO3-, eosinophils(%), and pH? </Subquestion 2>\n'
    '<Answer 2> Both are low. Yes, very. </Answer 2>\n'
    f'<Final subquestion> {FINAL} </Final subquestion>\n'
    '<Important Features> lactate, eosinophils(%), HCO3- </Important Features>\n<Final answer> 0.75 </Final answer>')
# The pre-tokenisers of the two common families: GPT-2 splits '>' from a line break, Llama 3 and Qwen merge them.
GPT2 = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@functools.cache
def tokenizer(kind: str) -> Tokenizer:
  """'tiny': as the tiny policy's. 'gpt2', 'qwen': byte-level BPE that splits tags and merges punctuation.

  'llama2': SentencePiece as Llama 2's and Mistral's, which puts a space before every text.
  """
  texts = [ANSWER, '<Useful> Is this sub-question useful? Yes No'] * 3
  if kind == 'tiny':
    return train_tokenizer(texts, NAMES, 500)
  if kind == 'llama2':
    return _sentencepiece(texts)
  fast = tokenizers.Tokenizer(models.BPE())
  fast.pre_tokenizer = pre_tokenizers.Sequence([
      pre_tokenizers.Split(Regex(GPT2 if kind == 'gpt2' else QWEN), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
  fast.decoder = decoders.ByteLevel()
  fast.train_from_iterator(texts, trainers.BpeTrainer(
      vocab_size=420, special_tokens=['<eos>'], show_progress=False,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
  return Tokenizer(fast, '<eos>')


def _sentencepiece(texts: list[str]) -> Tokenizer:
  byte = [f'<0x{b:02X}>' for b in range(256)]
  fast = tokenizers.Tokenizer(models.BPE(byte_fallback=True))
  fast.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
  fast.pre_tokenizer = pre_tokenizers.Split('▁', 'merged_with_next')  # in training alone: words begin with a space
  letters = sorted(set(''.join(texts).replace(' ', '▁')) - {'\n'})
  fast.train_from_iterator(texts, trainers.BpeTrainer(
      vocab_size=600, special_tokens=['<eos>', *byte], show_progress=False, initial_alphabet=letters,
      limit_alphabet=len(letters)))
  content = json.loads(fast.to_str())
  content['added_tokens'] = [t for t in content['added_tokens'] if t['content'] == '<eos>']
  content['pre_tokenizer'] = None
  content['model']['vocab'] = {t: i for t, i in content['model']['vocab'].items() if '\n' not in t}
  content['model']['merges'] = [m for m in content['model']['merges'] if '\n' not in ''.join(m)]
  content['decoder'] = {'type': 'Sequence', 'decoders': [
      {'type': 'Replace', 'pattern': {'String': '▁'}, 'content': ' '}, {'type': 'ByteFallback'}, {'type': 'Fuse'},
      {'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0}]}
  return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)), '<eos>')


@functools.cache
def compiled(kind: str, **changes):
  """Automaton of a tokenizer, for a model with a few spare vocabulary rows."""
  tok = tokenizer(kind)
  fields = {'max_depth': 3, 'max_features': 4, 'question_tokens': 40, 'answer_tokens': 60, **changes}
  return compile_grammar(tok, NAMES, tok.vocab_size + 7, GrammarConfig(FINAL, **fields))


@pytest.fixture(scope='session')
def toy():
  return types.SimpleNamespace(NAMES=NAMES, FINAL=FINAL, ANSWER=ANSWER, tokenizer=tokenizer, compiled=compiled)
