"""Writes adapters as a PEFT directory: the few weights a run trained, for users who have the base model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from eagrl_jax.lm import layout, lora, tensor_file
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.lm.tokenizer import Tokenizer
from eagrl_jax.types import EagrlError, Params

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'


def save_peft(path: str | Path, params: Params, cfg: LMConfig, tokenizer: Tokenizer, base: str) -> None:
  """Writes adapter_config.json, the adapters in float32 and the tokenizer, as `peft.PeftModel` reads them.

  Args:
    base: name of the model that the adapters stand on, as `base_model_name_or_path`.

  Raises:
    EagrlError: a policy without adapters.
  """
  if cfg.lora is None:
    raise EagrlError('export.adapter: this policy has no adapters; set lm.lora_rank before training, or '
                     'export.adapter=False')
  directory = Path(path)
  directory.mkdir(parents=True, exist_ok=True)
  tensors: dict[str, np.ndarray] = {}
  for name in cfg.lora.names:
    a, b = (np.asarray(params['layers'][name + s], np.float32) for s in lora.SUFFIXES)
    for i in range(cfg.n_layers):
      key = 'base_model.model.' + layout.hf_key(name, i).removesuffix('weight')
      tensors[key + 'lora_A.weight'] = np.ascontiguousarray(a[i].reshape(-1, cfg.lora.rank).T)
      tensors[key + 'lora_B.weight'] = np.ascontiguousarray(b[i].reshape(cfg.lora.rank, -1).T)
  tensor_file.save(tensors, directory / WEIGHTS)
  (directory / CONFIG).write_text(json.dumps({
      'peft_type': 'LORA', 'task_type': 'CAUSAL_LM', 'base_model_name_or_path': base, 'r': cfg.lora.rank,
      'lora_alpha': cfg.lora.alpha, 'lora_dropout': 0.0, 'target_modules': list(cfg.lora.targets), 'bias': 'none',
      'fan_in_fan_out': False, 'inference_mode': True}, indent=2) + '\n', 'utf-8')
  tokenizer.save(directory)
