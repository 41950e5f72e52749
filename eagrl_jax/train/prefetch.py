"""Prepares the next batch on a thread while the device works on this one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

T = TypeVar('T')


def prefetch(source: Iterator[T], ahead: int = 2) -> Generator[T, None, None]:
  """The same items in the same order; an error of `source` is raised where its item would have come.

  Closing the returned generator stops the thread.
  """
  ready: queue.Queue[Any] = queue.Queue(ahead)
  stop = threading.Event()

  def put(item: Any) -> bool:
    while not stop.is_set():
      try:
        ready.put(item, timeout=0.1)
        return True
      except queue.Full:
        continue
    return False

  def work() -> None:
    try:
      for item in source:
        if not put((item, None)):
          return
      put((None, StopIteration()))
    except Exception as e:  # handed to the consumer
      put((None, e))

  thread = threading.Thread(target=work, daemon=True)
  thread.start()
  try:
    while True:
      item, error = ready.get()
      if isinstance(error, StopIteration):
        return
      if error is not None:
        raise error
      yield item
  finally:
    stop.set()
    thread.join()
