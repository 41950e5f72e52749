import itertools
import threading

import pytest

from eagrl_jax.train.prefetch import prefetch


def test_items_come_in_order():
  assert list(prefetch(iter(range(50)))) == list(range(50))


def test_an_error_arrives_after_the_items_before_it():
  def source():
    yield 1
    raise ValueError('broken')
  items = prefetch(source())
  assert next(items) == 1
  with pytest.raises(ValueError, match='broken'):
    next(items)


def test_closing_ends_the_thread():
  before = threading.active_count()
  items = prefetch(itertools.count())
  assert next(items) == 0 and threading.active_count() == before + 1
  items.close()
  assert threading.active_count() == before
