"""Whom the rl stage asks for answers: `rl.rollouts`.

- `own`: our sampler, on the weights of the step.
- `http://host:port/v1`: a vLLM server. The policy is written, as a Hugging Face directory in `lm.compute_dtype`, to
  `<workdir>/rl/rollouts` before the first step and every `rl.rollouts_refresh` steps from there (after a resume: from
  the first step that it makes), and the server reads it again: once for all that is asked of the same weights. So
  answers come from weights that are at most `rl.rollouts_refresh - 1` steps old; the update's ratio is to the
  probabilities that the server gave. The entropies of the upper clip are the current policy's, by one forward pass
  over the answers.

The server must see the folder under the same path. Before the first step it has to show that it reads its weights
again, QKV biases and QK gains aside: one that keeps some of them, as vLLM on a CPU keeps a tied head (seen of vLLM
0.32), would write the answers of another policy, and nothing but `sampler_gap_mean` would tell.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import urllib.parse
from collections.abc import Callable

import jax
import numpy as np
from absl import logging

from eagrl_jax import mesh as mesh_lib
from eagrl_jax.lm import checkpoint_config, equivalent, hf_io
from eagrl_jax.lm.config import LMConfig
from eagrl_jax.rl import engine
from eagrl_jax.rl import rollouts as rollouts_lib
from eagrl_jax.stages import policy as policy_lib
from eagrl_jax.stages.context import Context
from eagrl_jax.train import processes
from eagrl_jax.types import Array, EagrlError, Params, PromptBatch, Rollout

PROBE = 64  # tokens of a prompt by which a server shows what it has read
ALIKE = 0.1  # log-probabilities this far apart, as a share of those of another prompt, differ by rounding alone


def choose(context: Context, policy: policy_lib.Policy) -> rollouts_lib.Generate:
  """What `rl.rollouts` names, for the policy that is trained."""
  c = context.config.rl
  sampling = policy_lib.sampling(policy, c.group, c.max_new, c.temperature)
  if c.rollouts == 'own':
    return rollouts_lib.own(policy.config, sampling)
  return External(context, policy, sampling)


class External:
  """A `Generate` that asks a server and keeps its weights fresh; a step is a tree of weights not seen before."""

  def __init__(self, context: Context, policy: policy_lib.Policy, sampling: engine.Sampling):
    c = context.config
    self._server = engine.Server(c.rl.rollouts.rstrip('/'), c.rl.rollouts_model, c.rl.rollouts_timeout)
    self._folder = (context.folder('rl') / 'rollouts').resolve()
    self._config, self._tokenizer, self._dtype = policy.config, policy.tokenizer, c.lm.compute_dtype
    self._mesh, self._sampling, self._refresh = context.mesh, sampling, c.rl.rollouts_refresh
    self._steps, self._micro = 0, c.rl.micro_batch
    self._seen: Params | None = None  # an update donates its arrays: holding the tree holds no memory
    host = urllib.parse.urlsplit(self._server.url).hostname
    if processes.is_main() and host not in ('localhost', '127.0.0.1', '::1'):
      logging.warning('rl.rollouts: prompts, which are patient records, are sent to %s', host)

  def __call__(self, params: Params, prompt: PromptBatch, key: Array) -> Rollout:
    seen = jax.tree.map(np.asarray, processes.local(prompt))
    asked = rollouts_lib.token_lists(seen), rollouts_lib.seeds(key, seen)  # the key belongs to all processes' mesh
    if params is not self._seen:
      if self._steps % self._refresh == 0:
        self._renew(params, asked[0][0][:PROBE])
      self._steps, self._seen = self._steps + 1, params
    answers = processes.first(lambda: engine.complete(
        self._server, self._sampling, self._config.vocab_size, *asked))
    rollout = mesh_lib.shard_batch(self._mesh, rollouts_lib.to_rollout(answers, self._sampling))
    return rollouts_lib.with_entropy(params, self._config, prompt, rollout, self._micro)

  def _renew(self, params: Params, probe: list[int]) -> None:
    """Writes the policy and has the server read it; the name of its model comes from the first time."""
    whole, cfg = equivalent.untied(processes.local(params), checkpoint_config.bounded(self._config))

    def work() -> str:
      self._write(whole, cfg)
      try:
        server = engine.served(self._server, str(self._folder))
      except EagrlError as e:
        if self._steps:
          raise
        raise EagrlError(f'{e}; to start one: VLLM_SERVER_DEV_MODE=1 vllm serve {self._folder} --dtype {self._dtype}'
                         ) from None
      engine.reload(server)
      if not self._steps:
        self._try(server, whole, cfg, probe)
      return server.model

    self._server = dataclasses.replace(self._server, model=processes.first(work))

  def _try(self, server: engine.Server, params: Params, cfg: LMConfig, probe: list[int]) -> None:
    """Has the server read the same function in other coordinates, where its verdict on `probe` must be that of before.

    Raises:
      EagrlError: it is not; of the weights read again some are still the old ones, or all.
    """
    moved = [(token + 1) % cfg.vocab_size for token in probe]
    before, otherwise = (np.array(engine.prompt_logprobs(server, tokens)) for tokens in (probe, moved))
    self._write(params, cfg, equivalent.shifted(cfg))
    engine.reload(server)
    after = np.array(engine.prompt_logprobs(server, moved))
    self._write(params, cfg)
    engine.reload(server)
    off, apart = (float(np.abs(x - before).mean()) for x in (after, otherwise))
    if not off <= ALIKE * apart:
      raise server.refuse(
          'told to read its weights again (reload_weights), it kept old ones: log-probabilities that should stay '
          f'moved by {off:.2g}, where those of another prompt lie {apart:.2g} away; serve with another version of vLLM')

  def _write(self, params: Params, cfg: LMConfig, change: Callable[[str, np.ndarray], np.ndarray] = lambda _, x: x
             ) -> None:
    """Replaces the folder's files one by one: a server that has one of them mapped keeps the old one."""
    fresh = pathlib.Path(f'{self._folder}.new')
    shutil.rmtree(fresh, ignore_errors=True)  # of a run that was cut short
    hf_io.save_hf(fresh, params, cfg, self._tokenizer, self._dtype, change=change)
    self._folder.mkdir(parents=True, exist_ok=True)
    made = sorted(fresh.iterdir())
    for file in made:
      os.replace(file, self._folder / file.name)
    fresh.rmdir()
    for file in set(self._folder.glob('model*')) - {self._folder / file.name for file in made}:
      file.unlink()  # a shard or the index of larger weights, which the server would read
