"""What a server of answers may send: replies of any JSON, and bytes that are no reply at all."""

from __future__ import annotations

import contextlib
import json
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from material import JSON, damaged, only_our_error

from eagrl_jax.rl import engine

ASKED = engine.Sampling(2, 4, 1.0, (9,), 0)
SERVER = engine.Server('http://127.0.0.1:1/v1', 'policy', 5.0)
PROMPT = [1, 2, 3]


def choice(index: int) -> dict:
  return {'index': index, 'token_ids': [5, 6, 9], 'logprobs': {'token_logprobs': [-0.1, -2.0, 0.0]},
          'prompt_token_ids': PROMPT}


ODD = st.one_of(JSON, st.sampled_from([0, 1, '0', '1', True, 1.0, -1, 10**400, float('nan'), float('inf'), [9], [5] * 4,
                                       [-1e300] * 3, [10**400] * 3, [-(10**400)] * 3, ['5'], {'token_logprobs': None}]))


@given(st.data())
def test_a_reply_of_anything(data):
  choices = [choice(i) for i in data.draw(st.permutations(range(2)))]
  places = [*choices, choices[0]['logprobs']]
  for _ in range(data.draw(st.integers(0, 3))):
    which = data.draw(st.sampled_from(places))
    which[data.draw(st.sampled_from([*which, 'x']))] = data.draw(ODD)
  reply = {'choices': choices} if data.draw(st.integers(0, 9)) else data.draw(ODD)
  found: list = []
  if only_our_error(lambda: found.extend(engine.read(SERVER, ASKED, 10, PROMPT, reply))):
    assert len(found) == 2 and all(len(ids) == len(logprobs) for ids, logprobs in found)
    assert all(type(i) is int and 0 <= i < 10 for ids, _ in found for i in ids)
    assert all(-1e31 < x <= 0 for _, logprobs in found for x in logprobs)


class Raw:
  """Answers every connection with `reply`, whatever was asked, and closes it."""

  def __init__(self):
    self.reply, self.listener = b'', socket.create_server(('127.0.0.1', 0), backlog=64)
    threading.Thread(target=self.serve, daemon=True).start()

  def serve(self):
    while True:
      try:
        connection, _ = self.listener.accept()
      except OSError:
        return
      with connection, contextlib.suppress(OSError):
        asked = b'?'
        while asked and not asked.endswith(b'\r\n\r\n' if asked[1:].startswith(b'GET') else b'}'):
          more = connection.recv(1 << 16)
          asked = asked + more if more else b''
        connection.sendall(self.reply)


@pytest.fixture(scope='module')
def raw():
  server = Raw()
  yield server
  server.listener.close()


BODY = json.dumps({'choices': [choice(0), choice(1)]}).encode()
HEAD = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n'
CHUNKED = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n'
LINES = st.lists(st.sampled_from([
    b'HTTP/1.1 200 OK', b'HTTP/1.1 302 Found', b'HTTP/1.1 404 x', b'HTTP/1.1 99999 x', b'HTTP/9 200', b'ICY 200 OK',
    b'', b'Location: file:///x', b'Location: http://[', b'Location: /v1/completions', b'Content-Length: -5',
    b'Content-Length: x', b'Content-Length: 99999999999999999999', b'Transfer-Encoding: chunked', b'-1', b'zz', b'5',
    b'7fffffffffff', b'Content-Length: 9999999999999', b'Content-Encoding: gzip', b'\xff\xfe',
    b'x' * 70000, b'null', b'[' * 100000, b'1' * 5000, BODY]), max_size=8)


@given(st.data())
def test_bytes_of_anything(raw, data):
  whole = data.draw(st.sampled_from([HEAD % len(BODY) + BODY, CHUNKED + b'%x\r\n%s\r\n0\r\n\r\n' % (len(BODY), BODY)]))
  lines = st.tuples(st.sampled_from([b'', CHUNKED, HEAD % 4]), LINES.map(b'\r\n'.join)).map(b''.join)
  raw.reply = damaged(data, whole) if data.draw(st.booleans()) else data.draw(st.one_of(lines, st.binary(max_size=60)))
  server = engine.Server(f'http://127.0.0.1:{raw.listener.getsockname()[1]}/v1', 'policy', 5.0)
  only_our_error(lambda: engine.complete(server, ASKED, 10, [PROMPT], [1]))


@given(st.data())
def test_a_list_of_models_of_anything(raw, data):
  card = {'id': 'policy', 'root': 'folder'} | data.draw(st.dictionaries(st.sampled_from(['id', 'root']), ODD,
                                                                        max_size=2))
  cards = [card, *data.draw(st.lists(ODD, max_size=1))]
  body = json.dumps({'data': cards} if data.draw(st.integers(0, 9)) else data.draw(ODD)).encode()
  raw.reply = HEAD % len(body) + body
  server = engine.Server(f'http://127.0.0.1:{raw.listener.getsockname()[1]}/v1', '', 5.0)
  only_our_error(lambda: engine.served(server, 'folder'))
