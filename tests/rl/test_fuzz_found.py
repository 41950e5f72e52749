"""What fuzzing found in the reading of a server's replies, one small case each."""

from __future__ import annotations

import json

import pytest

from eagrl_jax.rl import engine
from eagrl_jax.types import EagrlError

SERVER = engine.Server('http://127.0.0.1:1/v1', '', 1.0)
ASKED = engine.Sampling(2, 4, 1.0, (9,), 0)


def reply(**change):
  good = {'index': 0, 'token_ids': [5, 9], 'logprobs': {'token_logprobs': [-1.0, -2.0]}}
  return {'choices': [good, {**good, 'index': 1, **change}]}


def refused(match, call):
  with pytest.raises(EagrlError, match=match) as caught:
    call()
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('index', ['1', 1.0, True, None, [1]])
def test_an_index_is_a_whole_number(index):
  assert len(engine.read(SERVER, ASKED, 10, [1], reply())) == 2
  refused('2 answers came back where rl.group=2', lambda: engine.read(SERVER, ASKED, 10, [1], reply(index=index)))


@pytest.mark.parametrize('value', [10**400, -(10**400), -1e300, float('-inf'), float('nan'), True, None])
def test_a_log_probability_that_float32_does_not_hold(value):
  wrong = reply(logprobs={'token_logprobs': [-1.0, value]})
  refused('no log-probability for every token', lambda: engine.read(SERVER, ASKED, 10, [1], wrong))


class Reply:
  """What urllib gives back."""

  def __init__(self, text: bytes, length: int | None = None):
    self.text, self.length = text, length  # length: bytes that were promised and are still to come

  def __enter__(self):
    return self

  def __exit__(self, *error):
    pass

  def read(self, most: int) -> bytes:
    return self.text[:most]


def test_a_reply_nested_without_end(monkeypatch):
  monkeypatch.setattr(engine._direct, 'open', lambda *_, **__: Reply(b'[' * 100000))
  refused('the reply is no JSON', lambda: engine.complete(SERVER, ASKED, 10, [[1]], [1]))


@pytest.mark.parametrize('text', [b'', b'{"results": [nu'])
def test_a_reply_that_breaks_off(monkeypatch, text):
  monkeypatch.setattr(engine._direct, 'open', lambda *_, **__: Reply(text, 500))
  refused('no server answers \\(IncompleteRead', lambda: engine.reload(SERVER))


def test_a_reply_without_end(monkeypatch):
  monkeypatch.setattr(engine, 'LARGEST', 1 << 20)
  monkeypatch.setattr(engine._direct, 'open', lambda *_, **__: Reply(b'1' * ((1 << 20) + 9)))
  refused('the reply is longer than 1 MiB', lambda: engine.complete(SERVER, ASKED, 10, [[1]], [1]))


@pytest.mark.parametrize('name', [float('nan'), None, [1]])
def test_a_model_whose_name_is_no_text(monkeypatch, name):
  cards = {'data': [{'id': name, 'root': 'elsewhere'}]}
  monkeypatch.setattr(engine._direct, 'open', lambda *_, **__: Reply(json.dumps(cards).encode()))
  refused('not started on the folder', lambda: engine.served(SERVER, 'here'))
