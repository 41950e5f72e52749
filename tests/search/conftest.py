"""Tokenizers and automata that the search tests share."""

import functools
import types

import pytest
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

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
  """'tiny': as the tiny policy's. 'gpt2', 'qwen': byte-level BPE that splits tags and merges punctuation."""
  texts = [ANSWER, '<Useful> Is this sub-question useful? Yes No'] * 3
  if kind == 'tiny':
    return train_tokenizer(texts, NAMES, 500)
  fast = tokenizers.Tokenizer(models.BPE())
  fast.pre_tokenizer = pre_tokenizers.Sequence([
      pre_tokenizers.Split(Regex(GPT2 if kind == 'gpt2' else QWEN), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
  fast.decoder = decoders.ByteLevel()
  fast.train_from_iterator(texts, trainers.BpeTrainer(
      vocab_size=420, special_tokens=['<eos>'], show_progress=False,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
  return Tokenizer(fast, '<eos>')


@functools.cache
def compiled(kind: str, **changes):
  """Automaton of a tokenizer, for a model with a few spare vocabulary rows."""
  tok = tokenizer(kind)
  fields = {'max_depth': 3, 'max_features': 4, 'question_tokens': 40, 'answer_tokens': 60, **changes}
  return compile_grammar(tok, NAMES, tok.vocab_size + 7, GrammarConfig(FINAL, **fields))


@pytest.fixture(scope='session')
def toy():
  return types.SimpleNamespace(NAMES=NAMES, FINAL=FINAL, ANSWER=ANSWER, tokenizer=tokenizer, compiled=compiled)
