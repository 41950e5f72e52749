"""Patients a second in training the expert: ConCare beside the plain PyTorch one, a GRU a channel in a Python loop.

    python -m benchmarks.expert --lengths 10 48 --hidden 64 128
    python -m benchmarks.expert --prefixes --members 1 --reps 1

Needs the `peers` extra. Ours is the jitted epoch of `train_ensemble`, gathering of rows and dropout included; the
peer is the same formula with the same batch, dropout, penalty and optimiser. Both are trained on the last visit, or on
every prefix: the peer then runs its model T times, ours makes the states of all prefixes in one pass.
The ceiling is the float32 matmul rate over three forward passes of matmuls, the first visit's recurrent ones left
out: its state is zero. Goals: last visit 2 x, all prefixes 10 x.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from eagrl_jax.expert import train as expert_train
from eagrl_jax.expert.concare import ConCareConfig
from eagrl_jax.types import ExpertBatch


def patients(n: int, visits: int, features: int) -> ExpertBatch:
  """Random stays of full length, both outcomes."""
  rng = np.random.default_rng(0)
  values = rng.normal(size=(n, visits, features)).astype(np.float32)
  return ExpertBatch(
      values=values, observed=np.ones_like(values), valid=np.ones((n, visits), bool),
      hours=np.tile(24 * np.arange(visits, dtype=np.float32), (n, 1)),
      static=rng.normal(size=(n, 2)).astype(np.float32), label=(np.arange(n) % 2).astype(np.float32))


def ours(model: ConCareConfig, members: int, batch: int, visits: int, features: int, steps: int, reps: int,
         prefixes: bool) -> float:
  """Patients a second that each of the members trains on, all side by side."""
  cfg = expert_train.ExpertTrainConfig(model, members=members, batch=batch, epochs=reps + 1, patience=reps + 1, chunk=1,
                                       prefixes=prefixes)
  ends = []
  expert_train.train_ensemble(
      jax.random.key(0), cfg, patients(batch * steps, visits, features), patients(1, visits, features),
      lambda *_: ends.append(time.perf_counter()))  # the first epoch compiles
  return batch * steps / float(np.median(np.diff(ends)))


def torch_concare(cfg: ConCareConfig, features: int, static: int) -> Any:
  """The network as public code has it: a list of GRUs, of queries and of keys, one channel after another."""
  import torch
  from torch import nn
  from torch.nn import functional

  class ConCare(nn.Module):

    def __init__(self):
      super().__init__()
      h = cfg.hidden
      self.gru = nn.ModuleList(nn.GRU(1, h, batch_first=True) for _ in range(features))
      self.time_query = nn.ModuleList(nn.Linear(h, cfg.time_dim, bias=False) for _ in range(features))
      self.time_key = nn.ModuleList(nn.Linear(h, cfg.time_dim, bias=False) for _ in range(features))
      self.rate = nn.Parameter(torch.full((features,), 0.8))
      self.static_token = nn.Linear(static, h)
      self.query, self.key, self.value, self.mix = (nn.Linear(h, h) for _ in range(4))
      self.ffn = nn.Sequential(nn.Linear(h, cfg.ffn), nn.ReLU(), nn.Linear(cfg.ffn, h))
      self.final_query, self.final_key, self.final_value = (nn.Linear(h, h) for _ in range(3))
      self.head = nn.Linear(h, 1)
      self.drop = nn.Dropout(cfg.dropout)

    def token(self, i, x):  # [B, T] -> [B, H]
      states, _ = self.gru[i](x[..., None])
      query, keys = self.time_query[i](states[:, -1]), self.time_key[i](states)
      match = torch.sigmoid((keys @ query[..., None])[..., 0])  # [B, T]
      age = torch.arange(x.shape[1], 0, -1)
      energy = functional.relu(match / (torch.sigmoid(self.rate[i]) * torch.log(2.72 + 1 - match) * age))
      return (torch.softmax(energy, 1)[:, None] @ states)[:, 0]

    def forward(self, x, facts):
      """`x [B, T, F]`, `facts [B, A]` -> logit [B] and the DeCov penalty."""
      x = torch.stack([*(self.token(i, x[..., i]) for i in range(features)), torch.tanh(self.static_token(facts))], 1)
      b, n, h = x.shape
      x = self.drop(x)
      q, k, v = (f(x).reshape(b, n, cfg.heads, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
      weight = torch.softmax(q @ k.transpose(2, 3) / (h // cfg.heads) ** 0.5, -1)
      context = (weight @ v).transpose(1, 2).reshape(b, n, h)
      x = x + self.drop(self.mix(context))
      x = x + self.drop(self.ffn(x))
      attention = torch.softmax((self.final_key(x) @ self.final_query(x[:, -1])[..., None])[..., 0], 1)
      pooled = (self.drop(attention)[:, None] @ self.final_value(x))[:, 0]
      centred = context - context.mean(0)
      covariance = torch.einsum('bnh,bng->nhg', centred, centred) / max(b - 1, 1)
      diagonal = torch.diagonal(covariance, dim1=1, dim2=2)
      return self.head(pooled)[:, 0], 0.5 * ((covariance**2).sum() - (diagonal**2).sum())

  torch.manual_seed(0)
  return ConCare()


def peer(cfg: ConCareConfig, batch: int, visits: int, features: int, reps: int, prefixes: bool) -> float:
  import torch
  from torch.nn import functional
  torch.set_num_threads(measure.threads())
  data = patients(batch, visits, features)
  x, facts, label = (torch.tensor(np.asarray(a)) for a in (data.values, data.static, data.label))
  model = torch_concare(cfg, features, facts.shape[1])
  optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-2)

  def step():
    optimizer.zero_grad()
    ends = range(1, visits + 1) if prefixes else [visits]
    for end in ends:  # backward each time: the graphs of all prefixes of 48 visits would not fit 20 GB
      logit, penalty = model(x[:, :end], facts)
      loss = functional.binary_cross_entropy_with_logits(logit, label) + cfg.decov * penalty
      (loss / len(ends)).backward()
    optimizer.step()

  return batch / measure.seconds(step, reps)


def roofline(cfg: ConCareConfig, visits: int, features: int, flops: float, prefixes: bool) -> float:
  """Patients a second if nothing but matmuls took time, a backward pass twice the forward one."""
  h, tokens = cfg.hidden, features + 1
  recurrent = 3 * features * (visits - 1) * h * h
  dense = tokens * (4 * h * h + 2 * h * cfg.ffn + 2 * tokens * h)
  return flops / (3 * 2 * (recurrent + dense * (visits if prefixes else 1)))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--features', type=int, default=75)
  parser.add_argument('--lengths', type=int, nargs='+', default=[10])
  parser.add_argument('--hidden', type=int, nargs='+', default=[64, 128])
  parser.add_argument('--batch', type=int, default=64)
  parser.add_argument('--members', type=int, nargs='+', default=[1, 5],
                      help='experts trained side by side; the rate is of all together')
  parser.add_argument('--steps', type=int, default=4, help='optimiser steps an epoch')
  parser.add_argument('--reps', type=int, default=3)
  parser.add_argument('--prefixes', action='store_true', help='train on every prefix of a stay')
  parser.add_argument('--no_peer', action='store_true')
  a = parser.parse_args()
  flops, _ = measure.ceilings()
  how = ', all prefixes' if a.prefixes else ''
  for visits in a.lengths:
    for hidden in a.hidden:
      cfg = ConCareConfig(hidden=hidden, dropout=0.1, time_attention='pyehr')
      theirs = None if a.no_peer else peer(cfg, a.batch, visits, a.features, a.reps, a.prefixes)
      for members in a.members:
        mine = members * ours(cfg, members, a.batch, visits, a.features, a.steps, a.reps, a.prefixes)
        measure.report(f'expert {a.features} features x {visits} visits, hidden {hidden}, members {members}{how}',
                       'patients/s', mine, theirs, None if a.no_peer else 'torch, one member, a GRU a feature',
                       roofline(cfg, visits, a.features, flops, a.prefixes))


if __name__ == '__main__':
  main()
