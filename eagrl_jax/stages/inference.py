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
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from eagrl_jax import mesh as mesh_lib
from eagrl_jax import rng
from eagrl_jax.rl.reading import read_attention
from eagrl_jax.search import trajectories
from eagrl_jax.stages import digits as digits_lib
from eagrl_jax.stages import policy as policy_lib
from eagrl_jax.stages import settings, trees
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
  cost: dict[str, float | bool]  # of `Meter`
  tokens: list[list[int]] = dataclasses.field(default_factory=list)  # of the first answer, its end token included
  extra: dict[str, float] = dataclasses.field(default_factory=dict)  # figures of this way alone


class Meter:
  """Seconds and new tokens a patient.

  A batch of a new shape may compile, so its seconds are left out where another batch follows it.
  """

  def __init__(self):
    self._shapes: set[tuple[int, ...]] = set()
    self._seconds = {True: 0.0, False: 0.0}  # by whether the shape was new
    self._rows = {True: 0, False: 0}
    self._tokens = self._patients = 0

  def add(self, shape: tuple[int, ...], seconds: float, tokens: int, patients: int) -> None:
    """One batch of `shape` (rows, width); the first `patients` rows are real and wrote `tokens` together."""
    new = shape not in self._shapes
    self._shapes.add(shape)
    self._seconds[new] += seconds
    self._rows[new] += shape[0]
    self._tokens += tokens
    self._patients += patients

  def cost(self) -> dict[str, float | bool]:
    new = not self._rows[False]
    return {'seconds': self._seconds[new] / max(self._rows[new], 1),
            'new_tokens': self._tokens / max(self._patients, 1), 'with_compilation': new}


def answer(context: Context, name: str, encoder: Encoder, policy: policy_lib.Policy, rows: np.ndarray,
           unparsed: float, *, greedy: bool = False, example: np.ndarray | None = None) -> Arm:
  """Answers of one policy, in batches of one size: `samples`, or `greedy`.

  Args:
    rows: [n] of the encoder's cohort.
    unparsed: the score of an answer that states no probability.
    example: [N] a number for every row of the cohort that its random draws come from; None = the row number.
  """
  c, k = context.config.evaluate, context.config.reward.top_k
  samples, temperature = (1, 0.0) if greedy else (c.samples, c.temperature)
  size = min(c.batch, len(rows))
  n_features = len(encoder.cohort.features)
  key = rng.stage_key(context.config.seed, 'evaluate')
  attend = functools.partial(read_attention, policy.config, settings.update(context.config), n_features)
  prob, parsed, refused, named, attention, text, tokens, meter = [], [], [], [], [], [], [], Meter()
  with Progress(f'evaluate {name}', len(rows)) as progress:
    for start in range(0, len(rows), size):
      part = rows[start:start + size]
      full = np.resize(part, size)  # a last, short batch repeats its rows: same shape, no recompile
      prompt = encoder.batch(full)
      if example is not None:
        prompt = dataclasses.replace(prompt, example=example[full].astype(np.int32))
      prompt = mesh_lib.shard_batch(context.mesh, prompt)
      begun, n = time.perf_counter(), len(part)
      rollout = sample(policy, prompt, key, samples, c.max_new, temperature)
      written = jax.tree.map(np.asarray, processes.local(rollout))
      meter.add(prompt.tokens.shape, time.perf_counter() - begun, int(written.valid[:n].sum()), n)
      read = parse_rollout(written, policy.tokenizer, encoder.cohort, max_named=4 * k)
      first = jax.tree.map(lambda x: x[:, :1], (rollout, jnp.asarray(read.said.align_mask)))
      mass = np.asarray(processes.local(attend(policy.params, prompt, *first)))[:, 0]
      prob.append(read.probability(unparsed)[:n])
      parsed.append(read.said.parsed[:n].mean(1))
      refused.append(read.refused[:n].mean(1))
      named += [[int(f) for f in ids if f >= 0] for ids in np.asarray(read.said.named)[:n, 0]]
      attention.append(mass[:n])
      text += [group[0] for group in read.text[:n]]
      tokens += [ids[valid].tolist() for ids, valid in zip(written.tokens[:n, 0], written.valid[:n, 0])]
      progress.update(n, parsed=float(np.mean(np.concatenate(parsed))))
  join = np.concatenate
  return Arm(join(prob), join(parsed), join(refused), named, join(attention), text, meter.cost(), tokens)


def other_ways(context: Context, name: str, encoder: Encoder, policy: policy_lib.Policy, rows: np.ndarray,
               unparsed: float, kinds: Sequence[str], guide: Callable[[], tuple[np.ndarray, np.ndarray]]
               ) -> dict[str, Arm]:
  """The arms `<name>_<kind>` of all `kinds` but `samples`.

  Args:
    guide: gives the expert's probability `[N]` and salience `[N, F]`; called by `search` alone.
  """
  arms: dict[str, Arm] = {}
  if 'greedy' in kinds or 'digits' in kinds:
    written = answer(context, f'{name}_greedy', encoder, policy, rows, unparsed, greedy=True)
    if 'greedy' in kinds:
      arms[f'{name}_greedy'] = written
    if 'digits' in kinds:
      arms[f'{name}_digits'] = digits(context, f'{name}_digits', encoder, policy, rows, written)
  if 'search' in kinds:
    arms[f'{name}_search'] = search(context, f'{name}_search', encoder, policy, rows, *guide())
  return arms


def digits(context: Context, name: str, encoder: Encoder, policy: policy_lib.Policy, rows: np.ndarray,
           written: Arm) -> Arm:
  """The expected number behind `<Final answer>` in the greedy answers `written`, see the module's docstring."""
  tokenizer = policy.tokenizer
  size, bucket = min(context.config.evaluate.batch, len(rows)), encoder.bucket
  parents, parent, last = digits_lib.number_tokens(tokenizer)
  prob, mass, forced, meter = [], [], 0, Meter()
  with Progress(f'evaluate {name}', len(rows)) as progress:
    for start in range(0, len(rows), size):
      n = len(rows[start:start + size])
      batch = []
      for i in np.resize(np.arange(start, start + n), size):
        before, added = digits_lib.up_to_number(tokenizer, written.tokens[i])
        batch.append([*encoder.tokens(int(rows[i]))[0], *before])
        forced += added and len(batch) <= n
      width = -(-max(map(len, batch)) // bucket) * bucket
      prompt = pad_prompts([(known, -1) for known in batch], np.arange(size), tokenizer.pad_id, width)
      begun = time.perf_counter()
      shared = mesh_lib.shard_batch(context.mesh, (prompt.tokens, prompt.valid))
      logp = digits_lib.number_logprobs(policy.params, policy.config, *shared, parents, parent, last)
      weight = np.exp(np.asarray(processes.local(logp), np.float64))[:n]
      meter.add(prompt.tokens.shape, time.perf_counter() - begun, 0, n)
      prob.append(weight @ digits_lib.VALUES / weight.sum(1))
      mass.append(weight.sum(1))
      progress.update(n, mass=float(mass[-1].mean()))
  cost, ones = meter.cost(), np.ones(len(rows))
  cost = {'seconds': cost['seconds'] + written.cost['seconds'], 'new_tokens': written.cost['new_tokens'],
          'with_compilation': cost['with_compilation'] or written.cost['with_compilation']}
  extra = {'number_mass': float(np.concatenate(mass).mean()), 'forced_rate': forced / len(rows)}
  return dataclasses.replace(written, prob=np.concatenate(prob), parsed=ones, refused=0 * ones, cost=cost, extra=extra)


def search(context: Context, name: str, encoder: Encoder, policy: policy_lib.Policy, rows: np.ndarray,
           expert: np.ndarray, salience: np.ndarray) -> Arm:
  """The best path of a search that the expert guides.

  Args:
    expert: [N] the expert's probability, which stands where training has the outcome. salience: [N, F] its salience.
  """
  config = context.config
  grammar, goal = trees.grammar(context, policy, encoder.cohort), expert.astype(np.float32)
  size = min(config.search.trees, len(rows))
  key = rng.stage_key(config.seed, 'search at test time')
  best: dict[int, trajectories.Trajectory] = {}
  meter = Meter()
  with Progress(f'evaluate {name}', len(rows)) as progress:
    for start in range(0, len(rows), size):
      part = rows[start:start + size]
      full, n = np.resize(part, size), len(part)
      question = trees.ask(context, encoder, full, salience, goal)
      begun = time.perf_counter()
      result = trees.grow(context, policy, grammar, question, key)
      real = jax.tree.map(lambda x, n=n: np.asarray(x)[:n], result)
      made = np.arange(real.length.shape[1])[None] < real.tree.count[:, None]
      meter.add(question.prompt.tokens.shape, time.perf_counter() - begun, int((real.length * made).sum()), n)
      unseen = np.zeros(n, np.int8)  # in place of outcomes, which nothing here may see
      found = trajectories.read(real, part, unseen, question.top[:n], policy.tokenizer)
      for t in trajectories.best_first(found):
        best.setdefault(t.row, t)
      progress.update(n)
  chosen = [best[int(row)] for row in rows]
  ones = np.ones(len(rows))
  return Arm(np.array([t.prob for t in chosen]), ones, 0 * ones, [list(t.features) for t in chosen],
             np.zeros((len(rows), salience.shape[1]), np.float32), [t.text for t in chosen], meter.cost(),
             [list(t.tokens) for t in chosen])
