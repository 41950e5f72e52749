"""Progress of long work: a tqdm bar on a terminal, sparse log lines elsewhere."""

from __future__ import annotations

import sys
import time

from absl import logging
from tqdm import tqdm

from eagrl_jax.train import processes

LOG_EVERY_SECONDS = 15.0


class Progress:
  """Counts to `total` and shows the figures that matter.

  >>> with Progress('rl', 40) as p: p.update(reward=0.3)
  """

  def __init__(self, name: str, total: int, done: int = 0):
    self.name, self._total, self._done = name, total, done
    shown = sys.stderr.isatty() and processes.is_main()
    self._bar = tqdm(total=total, initial=done, desc=name, leave=False) if shown else None
    self._last = time.monotonic()
    self._start, self._initial = self._last, done

  def __enter__(self) -> Progress:
    return self

  def __exit__(self, *exc: object) -> None:
    if self._bar is not None:
      self._bar.close()

  def skip(self, n: int) -> None:
    """Advances by `n` that were done before, and took no time."""
    self._done, self._initial = self._done + n, self._initial + n
    if self._bar is not None:
      self._bar.initial += n
      self._bar.update(n)

  def update(self, n: int = 1, **figures: float) -> None:
    """Advances by `n`; `figures` are shown beside the bar."""
    self._done += n
    text = ' '.join(f'{k}={v:.3g}' for k, v in figures.items())
    if self._bar is not None:
      self._bar.set_postfix_str(text, refresh=False)
      self._bar.update(n)
      return
    now = time.monotonic()
    if now - self._last >= LOG_EVERY_SECONDS or self._done >= self._total:
      rate = (now - self._start) / max(self._done - self._initial, 1)
      left = rate * (self._total - self._done)
      logging.info('%s %d/%d %s (%.0f s left)', self.name, self._done, self._total, text, left)
      self._last = now
