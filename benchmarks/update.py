"""Seconds of one GRPO step: sample G answers to each prompt, judge them, one AdamW update on all of them.

    python -m benchmarks.update --peer trl
    python -m benchmarks.update --peer tunix
    python -m benchmarks.update --peer trl --shape smollm2 --reps 1
    python -m benchmarks.update --no_peer --shape qwen2.5-7b --lora_rank 16 --compute_dtype bfloat16 --remat full

TRL comes with the `peers` extra; Tunix needs `pip install google-tunix` in an environment of its own, see BUILD.md.
Goals on a CPU, float32, 2 prompts x 8 samples, prompt 256, answer 64: 5 x TRL and 2 x Tunix at the tiny
shape, 4 x TRL at SmolLM2's. Start with the malloc settings of the Makefile; they hold for ours and the peer alike.

Old log-probabilities: with one update a rollout both peers skip the pass that would compute them and take the update's
own; ours come out of the sampler, and the update computes the new ones anyway. The case `scored` adds a forward pass
for them. No answer can end early: all write the same number of tokens. TRL runs without gradient checkpointing, faster
than by its default. The update's FLOPs are those of the shared prefix; recomputation is not counted. `cpu_s` is the
process's own time: with one thread, what a step would take with nobody else on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from eagrl_jax import mesh as mesh_lib
from eagrl_jax.lm import lora, model, sampler
from eagrl_jax.lm.config import LORA_TARGETS, REMAT, LMConfig, LoraConfig
from eagrl_jax.lm.forward import forward_shared
from eagrl_jax.lm.logprobs import token_logprobs
from eagrl_jax.rl.clip import ClipConfig
from eagrl_jax.rl.judge import Answers, JudgeConfig, judge
from eagrl_jax.rl.rewards import RewardConfig
from eagrl_jax.rl.update import UpdateConfig, make_update
from eagrl_jax.train import state as state_lib
from eagrl_jax.train.optimizer import OptimizerConfig, make_optimizer
from eagrl_jax.types import PromptBatch, Rollout

PEERS = {'trl': 'trl', 'tunix': 'google-tunix'}  # module and what installs it
LEARNING_RATE = 1e-6
C_ALIGN = 0.05
FEATURES, NAMED = 32, 5


@dataclasses.dataclass(frozen=True)
class Work:
  """What everyone does in a step."""

  prompts: int
  group: int
  length: int  # tokens of a prompt
  new: int  # tokens of an answer

  @property
  def rows(self) -> int:
    return self.prompts * self.group

  @property
  def tokens(self) -> int:
    return self.prompts * self.length + self.rows * self.new

  def prompt_ids(self, cfg: LMConfig) -> np.ndarray:
    return np.random.default_rng(0).integers(4, cfg.vocab_size, (self.prompts, self.length))

  def __str__(self) -> str:
    return f'{self.prompts} x {self.group} x {self.new} after {self.length}'


def clock() -> np.ndarray:
  """Seconds on the wall and of this process's own CPU time."""
  return np.array([time.perf_counter(), time.process_time()])


def flops(cfg: LMConfig, work: Work) -> tuple[float, float]:
  """Of a rollout and of its update, when each prompt is read once for its group. Frozen weights have no gradient."""
  answers = work.rows * work.new
  weights = measure.matmul_flops(cfg) * work.tokens + 2 * cfg.vocab_size * cfg.d_model * answers
  attention = measure.attention_flops(cfg, work.prompts, work.length, work.rows, work.new)
  return weights + attention, (3 if cfg.lora is None else 2) * weights + 3 * attention


def reward(text: str) -> float:
  """Some function of the text, on the host, the same for all."""
  return sum(map(ord, text[-8:])) % 17 / 16


class Ours:
  """A policy and what its steps need."""

  def __init__(self, cfg: LMConfig, work: Work, micro_batch: int = 0):
    mesh, optimizer = mesh_lib.make_mesh(), make_optimizer(OptimizerConfig(LEARNING_RATE, total_steps=1))
    params = jax.jit(lambda k: model.init(cfg, k))(jax.random.key(0))
    self.cfg, self.work, self.taken = cfg, work, 0
    self.frozen = lora.split(params, cfg)[1]
    self.state = state_lib.from_params(params, cfg, optimizer, mesh)
    shardings = state_lib.state_shardings(cfg, optimizer, mesh)
    self.update, self.update_aligned = (
        make_update(cfg, optimizer, UpdateConfig(micro_batch=micro_batch or work.prompts, c_align=c), shardings)
        for c in (0.0, C_ALIGN))
    self.judge = JudgeConfig(RewardConfig(), ClipConfig())
    self.score = jax.jit(self._score)
    spans = np.broadcast_to(np.arange(work.length) * FEATURES // work.length, (work.prompts, work.length))
    self.prompt = jax.tree.map(jnp.asarray, PromptBatch(
        work.prompt_ids(cfg), np.ones(spans.shape, bool), spans.astype(np.int32), np.arange(work.prompts)))
    self.salience = np.random.default_rng(1).dirichlet(np.ones(FEATURES), work.prompts).astype(np.float32)

  def _score(self, params, prompt, rollout):
    out = forward_shared(params, self.cfg, prompt.tokens, prompt.valid, rollout.tokens, rollout.valid)
    return token_logprobs(params, self.cfg, out.hidden, rollout.tokens)[0]

  def read(self, rollout: Rollout) -> Answers:
    """On the host, where real answers are parsed."""
    tokens = np.asarray(rollout.tokens)
    prob = np.array([[reward(' '.join(map(str, row))) for row in group] for group in tokens], np.float32)
    late = np.broadcast_to(np.arange(self.work.new) >= self.work.new // 2, tokens.shape)
    return Answers(prob, np.ones(prob.shape, bool), tokens[..., :NAMED] % FEATURES, late, late)

  def step(self, scored: bool = False, aligned: bool = False) -> np.ndarray:
    """`clock` differences of a step, of its rollout, and of its update. `-> [3, 2]`."""
    begun = clock()
    params = lora.join(self.state.params, self.frozen)
    rollout = sampler.generate(params, self.cfg, self.prompt, jax.random.key(self.taken), group=self.work.group,
                               max_new=self.work.new, temperature=1.0, stop_ids=(), pad_id=0)
    jax.block_until_ready(rollout)
    sampled = clock()
    if scored:
      rollout = dataclasses.replace(rollout, logprobs=self.score(params, self.prompt, rollout))
    labels = np.arange(self.work.prompts) % 2
    batch, _ = judge(self.judge, self.prompt, rollout, self.read(rollout), labels, self.salience)
    jax.block_until_ready(batch)
    judged = clock()
    self.state, metrics = (self.update_aligned if aligned else self.update)(self.state, batch, self.frozen)
    jax.block_until_ready((self.state, metrics))
    done = clock()
    self.taken += 1
    if not metrics['finite']:
      raise SystemExit('the update was not finite: its time means nothing')
    return np.stack([done - begun, sampled - begun, done - judged])

  def seconds(self, reps: int, **case: bool) -> np.ndarray:
    """Medians of `step` after one that compiles. `-> [3, 2]`."""
    self.step(**case)
    return np.median([self.step(**case) for _ in range(reps)], 0)


def complete(lengths: list[int], work: Work) -> None:
  if set(lengths) != {work.new}:
    raise SystemExit(f'the peer wrote answers of {sorted(set(lengths))} tokens, not {work.new}: no comparison')


def trl(cfg: LMConfig, work: Work, reps: int) -> np.ndarray:
  """Median `clock` difference of TRL's `GRPOTrainer`, of its steps but the first. `-> [2]`."""
  import datasets
  import tokenizers
  import transformers
  from trl import GRPOConfig, GRPOTrainer
  words = {'<pad>': 0, '<eos>': 1, '<unk>': 2} | {f'w{i}': i for i in range(3, cfg.vocab_size)}
  fast = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token='<unk>'))
  fast.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer = transformers.PreTrainedTokenizerFast(
      tokenizer_object=fast, pad_token='<pad>', eos_token='<eos>', unk_token='<unk>', padding_side='left')
  prompts = [{'prompt': ' '.join(f'w{i}' for i in row)} for row in work.prompt_ids(cfg)]

  def judged(prompts, completions, completion_ids, **_):
    complete([len(tokenizer(p).input_ids) - work.length + work.new for p in prompts], work)
    complete(list(map(len, completion_ids)), work)
    return list(map(reward, completions))

  class Watch(transformers.TrainerCallback):
    def __init__(self):
      self.times: list[np.ndarray] = []

    def on_step_begin(self, *_, **__):
      self.begun = clock()

    def on_step_end(self, *_, **__):
      self.times.append(clock() - self.begun)

  watch = Watch()
  with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
    config = GRPOConfig(
        output_dir=folder, per_device_train_batch_size=work.rows, num_generations=work.group,
        max_completion_length=work.new, generation_kwargs={'min_new_tokens': work.new}, temperature=1.0, beta=0.0,
        learning_rate=LEARNING_RATE, max_steps=reps + 1, gradient_checkpointing=False, bf16=False,
        use_cpu=jax.default_backend() == 'cpu', report_to='none', save_strategy='no', logging_steps=10**6,
        disable_tqdm=True)
    GRPOTrainer(model=measure.hugging_face(cfg), reward_funcs=judged, args=config, processing_class=tokenizer,
                train_dataset=datasets.Dataset.from_list(prompts * (reps + 1)), callbacks=[watch]).train()
  return np.median(watch.times[1:], 0)


def tunix(cfg: LMConfig, work: Work, reps: int) -> np.ndarray:
  """Median `clock` difference from rollout to rollout of Tunix's `GRPOLearner`, but the first two, which compile."""
  import optax
  from flax import nnx
  from tunix.models.llama3 import model as llama
  from tunix.rl import rl_cluster
  from tunix.rl.grpo import grpo_learner
  from tunix.rl.rollout.base_rollout import RolloutConfig
  shape = llama.ModelConfig(
      num_layers=cfg.n_layers, vocab_size=cfg.vocab_size, embed_dim=cfg.d_model, hidden_dim=cfg.d_ff,
      num_heads=cfg.n_heads, head_dim=cfg.head_dim, num_kv_heads=cfg.n_kv_heads, rope_theta=int(cfg.rope_theta),
      norm_eps=cfg.norm_eps, weight_tying=cfg.tie_embeddings)
  graph, weights = nnx.split(llama.Llama3(shape, rngs=nnx.Rngs(0)))
  keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(weights))))
  # Its MLP starts at zero: every matrix gets noise instead, so that the policy is one.
  weights = jax.tree.map(lambda x, k: 0.02 * jax.random.normal(k, x.shape) if x.ndim > 1 else x, weights,
                         jax.tree.unflatten(jax.tree.structure(weights), list(keys)))

  class Words:
    encode = staticmethod(lambda text, **_: [int(w) for w in text.split()])
    decode = staticmethod(lambda ids, **_: ' '.join(str(int(i)) for i in ids))
    pad_id, bos_id, eos_id = staticmethod(lambda: 0), staticmethod(lambda: 1), staticmethod(lambda: -1)

  steps, starts = reps + 3, []
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ('fsdp', 'tp'))
  training = rl_cluster.RLTrainingConfig(
      actor_optimizer=optax.adamw(LEARNING_RATE), eval_every_n_steps=10**6, max_steps=steps,
      mini_batch_size=work.prompts, train_micro_batch_size=work.prompts, rollout_micro_batch_size=work.prompts,
      compute_logps_micro_batch_size=work.prompts)
  rollout = RolloutConfig(max_tokens_to_generate=work.new, max_prompt_length=work.length,
                          kv_cache_size=work.length + work.new, temperature=1.0, top_p=1.0)
  cluster = rl_cluster.RLCluster(
      actor=nnx.merge(graph, weights), tokenizer=Words(), cluster_config=rl_cluster.ClusterConfig(
          role_to_mesh={role: mesh for role in rl_cluster.Role}, rollout_engine='vanilla', training_config=training,
          rollout_config=rollout))
  generate = cluster.generate

  def timed(*args, **kwargs):
    starts.append(clock())
    out = generate(*args, **kwargs)
    if out.left_padded_prompt_tokens.shape != (work.rows, work.length):
      raise SystemExit(f'the peer read prompts of shape {out.left_padded_prompt_tokens.shape}: no comparison')
    complete([len(ids) for ids in out.tokens], work)
    return out

  cluster.generate = timed
  learner = grpo_learner.GRPOLearner(
      rl_cluster=cluster, reward_fns=lambda prompts, completions, **_: list(map(reward, completions)),
      algo_config=grpo_learner.GRPOConfig(num_generations=work.group, num_iterations=1, beta=0.0))
  texts = np.array([' '.join(map(str, row[1:])) for row in work.prompt_ids(cfg)])  # it puts its own token in front
  with mesh, contextlib.redirect_stdout(sys.stderr):
    learner.train({'prompts': texts} for _ in range(steps + 1))
  return np.median(np.diff(starts, axis=0)[2:], 0)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  measure.add_shape_flags(parser, 'tiny')
  which = parser.add_mutually_exclusive_group(required=True)
  which.add_argument('--peer', choices=PEERS)
  which.add_argument('--no_peer', action='store_true', help='ours alone')
  parser.add_argument('--remat', choices=REMAT, default='none')
  parser.add_argument('--lora_rank', type=int, default=0, help='above 0: adapters on every matrix, the rest frozen')
  parser.add_argument('--prompts', type=int, default=2)
  parser.add_argument('--length', type=int, default=256)
  parser.add_argument('--group', type=int, default=8)
  parser.add_argument('--new', type=int, default=64)
  parser.add_argument('--micro_batch', type=int, default=0, help='prompts a forward and backward pass; 0 = all')
  parser.add_argument('--reps', type=int, default=3)
  parser.add_argument('--peak_tflops', type=float, default=0.0, help='0 = by device, or measured')
  a = parser.parse_args()
  if a.peer and a.compute_dtype != 'float32':
    parser.error('the peers compute in float32: leave out --compute_dtype')
  if a.peer and a.lora_rank:
    parser.error('the peers train every weight: leave out --lora_rank')
  if a.peer and importlib.util.find_spec(a.peer) is None:
    raise SystemExit(f'--peer {a.peer} needs the package: pip install {PEERS[a.peer]}; see BUILD.md')
  cfg = dataclasses.replace(measure.shape(a), remat=a.remat)
  if a.shape == 'tiny':
    cfg = dataclasses.replace(cfg, vocab_size=49_152, d_ff=768)  # the one that the goals are stated for
  if a.lora_rank:
    cfg = dataclasses.replace(cfg, lora=LoraConfig(a.lora_rank, 2.0 * a.lora_rank, tuple(LORA_TARGETS)))
  work = Work(a.prompts, a.group, a.length, a.new)
  if a.peak_tflops:
    peak, source = a.peak_tflops * 1e12, 'given'
  else:
    peak, _, source = measure.peaks(cfg.compute_dtype)
  policy = Ours(cfg, work, micro_batch=a.micro_batch)
  plain = policy.seconds(a.reps)
  theirs = {'trl': trl, 'tunix': tunix}[a.peer](cfg, work, a.reps) if a.peer else (None, None)
  scored, aligned = policy.seconds(a.reps, scored=True), policy.seconds(a.reps, aligned=True)

  rollout, update = flops(cfg, work)
  name = f'{a.shape}{f" LoRA {a.lora_rank}" if a.lora_rank else ""} {work}'
  total, peer = rollout + update, PEERS[a.peer] if a.peer else None
  cases = (('', plain, theirs, peer, total), (', scored', scored, theirs, peer, total + rollout),
           (', attention aligned', aligned, plain[0], 'the same step without', total))
  for case, ours, other, beside, work_done in cases:
    (wall, cpu), (rollout_s, _), (update_s, _) = ours
    measure.report(f'GRPO step {name}{case}', 's', wall, other[0], beside, work_done / peak, rollout_s=rollout_s,
                   update_s=update_s, gflops=work_done / wall / 1e9, cpu_s=cpu, peer_cpu_s=other[1])
  measure.report(f'update {name}', 'tokens/s', work.tokens / plain[2, 0], None, None, work.tokens / (update / peak),
                 mfu=update / plain[2, 0] / peak, peak_tflops=peak / 1e12, peak=source, remat=a.remat)


if __name__ == '__main__':
  main()
