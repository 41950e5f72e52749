"""Ways to get a probability out of a policy, each with its cost; none sees an outcome.

- `samples`: the mean of `evaluate.samples` answers at `evaluate.temperature` (self-consistency).
- `greedy`: one answer, the most probable token at each place.
- `digits`: `E[p] = sum_i (i / 100) w_i / sum_i w_i` over i = 1 .. 99, where w_i is the policy's probability, at
  temperature 1, of the tokens of ' 0.<i>' right behind `<Final answer>` in its own greedy answer: exact, by running
  every number's tokens, not by drawing them. An answer without the tag is given one, on a line of its own, behind
  what it wrote. `number_mass` is the mean of sum_i w_i, what the policy itself puts on these 99 numbers, and
  `forced_rate` the share of answers that were given the tag.
- `search`: the tree search of the search stage with the policy as its own proposer. A final step is rewarded by the
  expert's probability and its salient features alone, never by the outcome; the probability, the named features and
  the text are those of the final step with the highest reward (then of the best path, the shortest, the first). It
  picks by the expert: its controls are the paired difference to the expert, and the same search with the policy
  `base`, which knows no outcome.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eagrl_jax import mesh as mesh_lib
from eagrl_jax import rng
from eagrl_jax.rl.reading import read_attention
from eagrl_jax.search import trajectories
from eagrl_jax.stages import digits as digits_lib
from eagrl_jax.stages import parts, settings, trees
from eagrl_jax.stages import policy as policy_lib
from eagrl_jax.stages.context import Context
from eagrl_jax.stages.encode import Encoder, pad_prompts, parse_rollout
from eagrl_jax.stages.policy import sample
from eagrl_jax.train import processes
from eagrl_jax.train.progress import Progress


@dataclasses.dataclass(frozen=True)
class Arm:
  """What one policy said about n patients."""

  prob: np.ndarray  # [n], mean over answers, the train prevalence where unparsed
  parsed: np.ndarray  # [n] share of the answers
  refused: np.ndarray  # [n] share of the answers
  named: list[list[int]]  # by the first answer, as the two below
  attention: np.ndarray  # [n, F] p_LM, rows sum to 1 (0 where no feature list was written, or none was read)
  text: list[str]
  cost: dict[str, float | bool]  # of `cost`
  tokens: list[list[int]] = dataclasses.field(default_factory=list)  # of the first answer, its end token included
  extra: dict[str, float] = dataclasses.field(default_factory=dict)  # figures of this way alone


@dataclasses.dataclass(frozen=True)
class Batch:
  """What was said of a batch of patients and what it took, in JSON's types: kept until all have answered."""

  rows: list[int]
  size: int  # of the batch as it was computed
  seconds: float
  new_tokens: int  # of all these patients
  compiled: bool  # its shape was new, so that it may have been compiled in these seconds


@dataclasses.dataclass(frozen=True)
class Answers(Batch):
  """Of n patients; as of `Arm`."""

  prob: list[float]
  parsed: list[float]
  refused: list[float]
  named: list[list[int]]
  attention: list[list[float]]
  text: list[str]
  tokens: list[list[int]]


@dataclasses.dataclass(frozen=True)
class Digits(Batch):
  """Expected number and mass of the numbers, a patient each."""

  prob: list[float]
  mass: list[float]
  forced: int


@dataclasses.dataclass(frozen=True)
class Searched(Batch):
  """The best path of each patient, as `trajectories.Trajectory.from_json` takes it."""

  best: list[dict]

  def __post_init__(self):
    for path in self.best:  # of another version they are not to be used
      trajectories.Trajectory.from_json(path)


class Meter:
  """Tells batches of a shape that this process has seen from those that it may have to compile."""

  def __init__(self):
    self._shapes: set[tuple[int, ...]] = set()

  def __call__(self, shape: tuple[int, ...], begun: float, new_tokens: int) -> dict[str, Any]:
    """The fields of `Batch` but for its rows: of one of `shape` (size, width) that began at `begun`."""
    new = shape not in self._shapes
    self._shapes.add(shape)
    return {'size': shape[0], 'seconds': time.perf_counter() - begun, 'new_tokens': new_tokens, 'compiled': new}


def cost(done: Sequence[Batch]) -> dict[str, float | bool]:
  """Seconds and new tokens a patient. Batches that may have been compiled are left out where there are others."""
  timed = [batch for batch in done if not batch.compiled]
  seconds = sum(batch.seconds for batch in timed or done) / max(sum(batch.size for batch in timed or done), 1)
  patients = sum(len(batch.rows) for batch in done)
  return {'seconds': seconds, 'new_tokens': sum(batch.new_tokens for batch in done) / max(patients, 1),
          'with_compilation': not timed}


def joined(done: Sequence[Batch], field: str) -> list:
  """A field that has an entry a patient, over all batches."""
  return [entry for batch in done for entry in getattr(batch, field)]


def answer(context: Context, name: str, encoder: Encoder, policy: policy_lib.Policy, rows: np.ndarray,
           unparsed: float, *, kept: pathlib.Path | None = None, greedy: bool = False,
           example: np.ndarray | None = None) -> Arm:
  """Answers of one policy, in batches of one size: `samples`, or `greedy`.

  Args:
    rows: [n] of the encoder's cohort.
    unparsed: the score of an answer that states no probability.
    kept: folder of the arms' batches, from which an interrupted evaluation goes on; None = nothing is kept.
    example: [N] a number for every row of the cohort that its random draws come from; None = the row number.
  """
  c, k = context.config.evaluate, context.config.reward.top_k
  samples, temperature = (1, 0.0) if greedy else (c.samples, c.temperature)
  size = min(c.batch, len(rows))
  n_features = len(encoder.cohort.features)
  key = rng.stage_key(context.config.seed, 'evaluate')
  attend = functools.partial(read_attention, policy.config, settings.update(context.config), n_features)
  meter = Meter()

  def work(part: np.ndarray) -> Answers:
    full = np.resize(part, size)  # a last, short batch repeats its rows: same shape, no recompile
    prompt = encoder.batch(full)
    if example is not None:
      prompt = dataclasses.replace(prompt, example=example[full].astype(np.int32))
    prompt = mesh_lib.shard_batch(context.mesh, prompt)
    begun, n = time.perf_counter(), len(part)
    rollout = sample(policy, prompt, key, samples, c.max_new, temperature)
    written = jax.tree.map(np.asarray, processes.local(rollout))
    spent = meter(prompt.tokens.shape, begun, int(written.valid[:n].sum()))
    read = parse_rollout(written, policy.tokenizer, encoder.cohort, max_named=4 * k)
    first = jax.tree.map(lambda x: x[:, :1], (rollout, jnp.asarray(read.said.align_mask)))
    mass = np.asarray(processes.local(attend(policy.params, prompt, *first)))[:, 0]
    return Answers(
        rows=part.tolist(), **spent, prob=read.probability(unparsed)[:n].tolist(),
        parsed=read.said.parsed[:n].mean(1).tolist(), refused=read.refused[:n].mean(1).tolist(),
        named=[[int(f) for f in ids if f >= 0] for ids in np.asarray(read.said.named)[:n, 0]],
        attention=mass[:n].tolist(), text=[group[0] for group in read.text[:n]],
        tokens=[ids[valid].tolist() for ids, valid in zip(written.tokens[:n, 0], written.valid[:n, 0])])

  with Progress(f'evaluate {name}', len(rows)) as progress:
    done = parts.in_turn(kept and kept / name, Answers, rows, size, work, progress,
                         lambda done: {'parsed': float(np.mean(joined(done, 'parsed')))})
  each = lambda field: joined(done, field)
  return Arm(np.array(each('prob')), np.array(each('parsed')), np.array(each('refused')), each('named'),
             np.array(each('attention'), np.float32), each('text'), cost(done), each('tokens'))


def other_ways(context: Context, name: str, encoder: Encoder, policy: policy_lib.Policy, rows: np.ndarray,
               unparsed: float, kinds: Sequence[str], guide: Callable[[], tuple[np.ndarray, np.ndarray]],
               kept: pathlib.Path | None = None) -> dict[str, Arm]:
  """The arms `<name>_<kind>` of all `kinds` but `samples`.

  Args:
    kept: as of `answer`.
    guide: gives the expert's probability `[N]` and salience `[N, F]`; called by `search` alone.
  """
  arms: dict[str, Arm] = {}
  if 'greedy' in kinds or 'digits' in kinds:
    written = answer(context, f'{name}_greedy', encoder, policy, rows, unparsed, kept=kept, greedy=True)
    if 'greedy' in kinds:
      arms[f'{name}_greedy'] = written
    if 'digits' in kinds:
      arms[f'{name}_digits'] = digits(context, f'{name}_digits', encoder, policy, rows, written, kept)
  if 'search' in kinds:
    arms[f'{name}_search'] = search(context, f'{name}_search', encoder, policy, rows, *guide(), kept)
  return arms


def digits(context: Context, name: str, encoder: Encoder, policy: policy_lib.Policy, rows: np.ndarray,
           written: Arm, kept: pathlib.Path | None = None) -> Arm:
  """The expected number behind `<Final answer>` in the greedy answers `written`, see the module's docstring."""
  tokenizer, meter = policy.tokenizer, Meter()
  size, bucket = min(context.config.evaluate.batch, len(rows)), encoder.bucket
  parents, parent, last = digits_lib.number_tokens(tokenizer)
  wrote = {int(row): tokens for row, tokens in zip(rows, written.tokens)}

  def work(part: np.ndarray) -> Digits:
    n, batch, forced = len(part), [], 0
    for i, row in enumerate(np.resize(part, size).tolist()):
      before, added = digits_lib.up_to_number(tokenizer, wrote[row])
      batch.append([*encoder.tokens(row)[0], *before])
      forced += added and i < n
    width = -(-max(map(len, batch)) // bucket) * bucket
    prompt = pad_prompts([(known, -1) for known in batch], np.arange(size), tokenizer.pad_id, width)
    begun = time.perf_counter()
    shared = mesh_lib.shard_batch(context.mesh, (prompt.tokens, prompt.valid))
    logp = digits_lib.number_logprobs(policy.params, policy.config, *shared, parents, parent, last)
    weight = np.exp(np.asarray(processes.local(logp), np.float64))[:n]
    return Digits(rows=part.tolist(), **meter(prompt.tokens.shape, begun, 0),
                  prob=(weight @ digits_lib.VALUES / weight.sum(1)).tolist(), mass=weight.sum(1).tolist(),
                  forced=forced)

  with Progress(f'evaluate {name}', len(rows)) as progress:
    done = parts.in_turn(kept and kept / name, Digits, rows, size, work, progress,
                         lambda done: {'mass': float(np.mean(done[-1].mass))})
  own, ones = cost(done), np.ones(len(rows))
  both = {'seconds': own['seconds'] + written.cost['seconds'], 'new_tokens': written.cost['new_tokens'],
          'with_compilation': own['with_compilation'] or written.cost['with_compilation']}
  extra = {'number_mass': float(np.mean(joined(done, 'mass'))),
           'forced_rate': sum(batch.forced for batch in done) / len(rows)}
  return dataclasses.replace(written, prob=np.array(joined(done, 'prob')), parsed=ones, refused=0 * ones, cost=both,
                             extra=extra)


def search(context: Context, name: str, encoder: Encoder, policy: policy_lib.Policy, rows: np.ndarray,
           expert: np.ndarray, salience: np.ndarray, kept: pathlib.Path | None = None) -> Arm:
  """The best path of a search that the expert guides.

  Args:
    expert: [N] the expert's probability, which stands where training has the outcome. salience: [N, F] its salience.
    kept: as of `answer`.
  """
  config = context.config
  grammar, goal = trees.grammar(context, policy, encoder.cohort), expert.astype(np.float32)
  size = min(config.search.trees, len(rows))
  key = rng.stage_key(config.seed, 'search at test time')
  meter = Meter()

  def work(part: np.ndarray) -> Searched:
    full, n = np.resize(part, size), len(part)
    question = trees.ask(context, encoder, full, salience, goal)
    begun = time.perf_counter()
    result = trees.grow(context, policy, grammar, question, key)
    real = jax.tree.map(lambda x: np.asarray(x)[:n], result)
    made = np.arange(real.length.shape[1])[None] < real.tree.count[:, None]
    spent = meter(question.prompt.tokens.shape, begun, int((real.length * made).sum()))
    unseen = np.zeros(n, np.int8)  # in place of outcomes, which nothing here may see
    best: dict[int, trajectories.Trajectory] = {}
    for t in trajectories.best_first(trajectories.read(real, part, unseen, question.top[:n], policy.tokenizer)):
      best.setdefault(t.row, t)
    return Searched(rows=part.tolist(), **spent, best=[vars(best[row]) for row in part.tolist()])

  with Progress(f'evaluate {name}', len(rows)) as progress:
    done = parts.in_turn(kept and kept / name, Searched, rows, size, work, progress)
  chosen = [trajectories.Trajectory.from_json(t) for t in joined(done, 'best')]
  ones = np.ones(len(rows))
  return Arm(np.array([t.prob for t in chosen]), ones, 0 * ones, [list(t.features) for t in chosen],
             np.zeros((len(rows), salience.shape[1]), np.float32), [t.text for t in chosen], cost(done),
             [list(t.tokens) for t in chosen])
