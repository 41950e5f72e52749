"""Writes what tests/lm/test_parity.py compares released weights with: transformers and torch on two GGUF files.

Needs torch, transformers and accelerate, and the two files in one folder; transformers reads them itself, so nothing of
ours lies between the weights and these numbers. Run from the repository root:

  python tests/golden/make_real_golden.py <folder of the .gguf files>
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import sys

import make_lm_golden
import numpy as np

MODELS = {'smollm2-135m': (14, 29), 'qwen2.5-coder-0.5b': (0, 23)}  # and the layers whose attention is stored
PROMPT = ('<Important Features>\nA 67-year-old woman, day 3 of her stay: lactate rose from 1.9 to 4.2 mmol/L, albumin'
          ' 28 g/L, heart rate 112. The feature that decides the outcome is')
NEW_TOKENS = 64
ROWS = 8  # answer tokens whose attention to the prompt is stored, mean over heads
POSITIONS = (0, 1, 5, 17, 33, 47, 55, 70, 90, 110)  # of prompt and answer; their logits at `vocabulary_subset`
SUBSET = 200
STRINGS = (
    '', ' ', '  ', 'a  b', 'a   b\n', '\n', '\n\n\n  x', ' \n ', '\tx\t\ty', 'a\r\nb\r\n', '    return 1\n\n\n',
    '1234567', ' 12.5', 'x1y22z', '3.14e-10', '12/31/2024 08:15', 'a  1', 'a   22', '120/80 mmHg', '-0.5',
    "don't I'll WE'VE it's", '!!!???...', '((a+b)*c)', 'snake_case_name = [1, 2];', ' \u3000 x', '\u200b\u00a0x',
    'µmol/L', 'e\u0301 cafe\u0301 \u00e9', '中文 病历', '🙂👍🏽 ok', '¾ ² ٣٤ Ⅷ', 'Привет мир', 'ﬁ ﬀ',
    '<Important Features>', '</Important Features>\n<Answer>1</Answer>', '<think>\n</think>', 'lactate 3.8 mmol/L',
    '<|im_start|>user\nhi<|im_end|>\n', 'a<|im_end|> b', '<|endoftext|>', '<tool_call>', '<|fim_prefix|>', 'x\u0000y')


def sha256(path: pathlib.Path) -> str:
  with path.open('rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def vocabulary_subset(size: int) -> np.ndarray:
  return np.sort(np.random.default_rng(9).choice(size, SUBSET, replace=False)).astype(np.int32)


def tokenizer_of(folder: pathlib.Path, file: str):
  """The tokenizer that transformers builds from a GGUF file, completed by the step its conversion loses.

  The released tokenizer.json of SmolLM2 splits off single digits first, that of Qwen2.5 normalises to NFC (as the class
  Qwen2Tokenizer does); the conversion of transformers 5.23 does neither.
  """
  import transformers
  from tokenizers import normalizers, pre_tokenizers

  tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), gguf_file=file)
  fast = tokenizer.backend_tokenizer
  if file.startswith('smollm'):
    fast.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), fast.pre_tokenizer])
  else:
    fast.normalizer = normalizers.NFC()
  return tokenizer


def make(folder: pathlib.Path, name: str, layers: tuple[int, ...]) -> dict[str, np.ndarray]:
  import torch
  import transformers

  file = f'{name}.gguf'
  tokenizer = tokenizer_of(folder, file)
  model = transformers.AutoModelForCausalLM.from_pretrained(
      str(folder), gguf_file=file, dtype=torch.float32, attn_implementation='eager').eval()
  prompt = np.array(tokenizer.encode(PROMPT, add_special_tokens=False))
  greedy, gap = make_lm_golden.continuation(model, prompt, NEW_TOKENS)
  if gap < make_lm_golden.SMALLEST_GAP:
    raise ValueError(f'{name}: two tokens are {gap} apart; change PROMPT')
  logits, attention = make_lm_golden.logits_and_attention(model, np.concatenate([prompt, greedy]))
  s = len(prompt)
  subset = vocabulary_subset(logits.shape[1])
  top = logits.max(-1)
  logsumexp = top + np.log(np.exp(logits.astype(np.float64) - top[:, None]).sum(-1))
  ids = [tokenizer.encode(text, add_special_tokens=False) for text in STRINGS]
  print(f'{name}: {s} prompt tokens, smallest gap {gap:.4f}, continued by {tokenizer.decode(greedy)!r}')
  return {
      'sha256': sha256(folder / file), 'prompt': prompt.astype(np.int32), 'greedy': greedy,
      'smallest_gap': np.float32(gap), 'layers': np.array(layers),
      'logits': logits[np.ix_(POSITIONS, subset)], 'top_id': logits.argmax(-1).astype(np.int32),
      'top_logit': top, 'logsumexp': logsumexp,
      'attention': attention[list(layers)].mean(1)[:, s:s + ROWS, :s], 'string_ids': json.dumps(ids)}


def main() -> None:
  folder = pathlib.Path(sys.argv[1])
  for name, layers in MODELS.items():
    np.savez(pathlib.Path(__file__).parent / f'lm_{name}.npz', **make(folder, name, layers))


if __name__ == '__main__':
  main()
