"""Writes a policy as a Hugging Face directory.

1. Load the policy that `export.policy` names.
2. Weights in `export.dtype` with adapters merged, config, tokenizer with its chat template and generation settings, in
   `<workdir>/export/<policy>`; with `export.adapter` the adapters alone, as PEFT reads them.
3. A model card with what the run measured.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

from absl import logging
from ml_collections import ConfigDict

from eagrl_jax.evaluation import report
from eagrl_jax.lm import checkpoint_config, hf_io, peft_io
from eagrl_jax.stages import policy as policy_lib
from eagrl_jax.stages.context import Context
from eagrl_jax.train import processes


def run(context: Context) -> None:
  policy = policy_lib.load(context.folder(context.config.export.policy), context.mesh)
  policy = dataclasses.replace(policy, params=processes.local(policy.params))
  processes.first(lambda: write(context, policy))


def write(context: Context, policy: policy_lib.Policy) -> None:
  c = context.config.export
  target = context.folder('export') / c.policy
  if c.adapter:
    peft_io.save_peft(target, policy.params, policy.config, policy.tokenizer, start_name(context.config))
  else:
    hf_io.save_hf(target, policy.params, checkpoint_config.bounded(policy.config), policy.tokenizer, c.dtype)
  (target / 'README.md').write_text(model_card(context), 'utf-8')
  logging.info('export: %s in %s', c.policy, target)


def start_name(config: ConfigDict) -> str:
  """The checkpoint's name: what is exported is meant to be passed on, a local path is not."""
  name = config.lm.checkpoint
  return pathlib.Path(name).name if name.endswith('.gguf') else hf_io.hub_name(name) or pathlib.Path(name).name


def hub_name(config: ConfigDict) -> str | None:
  """The name of a checkpoint that was downloaded from the hub; None where nothing here says that it was.

  A folder that is gone may be spelt like a name.
  """
  name = hf_io.hub_name(config.lm.checkpoint)
  return name if name and hf_io.downloaded(name) else None


def model_card(context: Context) -> str:
  """Front matter that the hub reads, the table of arms, how it was made, and what it is not."""
  config = context.config
  result = json.loads((context.folder('evaluate') / 'metrics.json').read_text())
  environment = json.loads((context.workdir / 'environment.json').read_text())
  start = 'trained from scratch on this cohort' if config.lm.checkpoint == 'tiny' else start_name(config)
  library, use = ('peft', 'Adapters for the model named under Start. ') if config.export.adapter else (
      'transformers', '')
  base = '' if hub_name(config) is None else f'base_model: {hub_name(config)}\n'
  prompt = 'compact, with flags' if config.prompt.style == 'compact' else config.prompt.style
  return f"""---
{base}library_name: {library}
pipeline_tag: text-generation
tags: [eag-rl, electronic-health-records]
---

# {config.export.policy} policy, {result['task']}

{use}Reads a rendered health record ({prompt} prompt) and writes sub-questions, the features that matter, and a
probability of the outcome between `<Final answer>` tags. Start: {start}. Cohort: {result['cohort']},
{result['n_test']} held-out patients, prevalence {result['prevalence']:.2f}; seed {result['seed']}.

```
{report.summary_table(result)}
```

AUROC and AUPRC with 95 % bootstrap intervals by patient; the probability is the mean of {config.evaluate.samples}
answer(s) at temperature {config.evaluate.temperature}; an answer that cannot be parsed counts as the train prevalence.
Intervals do not hold the spread between training seeds.

Exported by eagrl_jax (after EAG-RL, arXiv 2508.13579), commit {environment['git'] or 'unknown'}, jax
{environment['versions']['jax']}. Not a medical device, not validated for care, and not tested outside this cohort.
"""
