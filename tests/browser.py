"""A real Chromium for tests: pages are opened, clicked and typed at by its DevTools protocol; what it complains of.

The protocol runs over a pipe (`--remote-debugging-pipe`: JSON and a zero byte, in on file descriptor 3, out on 4), so
nothing but the browser is needed. https://chromedevtools.github.io/devtools-protocol
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROGRAM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
FLAGS = ('--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage', '--remote-debugging-pipe')
PATIENCE = 60.0  # seconds for one answer of the browser
KEYS = {'Tab': {'key': 'Tab', 'code': 'Tab', 'windowsVirtualKeyCode': 9},
        'Enter': {'key': 'Enter', 'code': 'Enter', 'windowsVirtualKeyCode': 13, 'text': '\r'}}


class Browser:
  """A running Chromium with a profile of its own; use it in a `with`."""

  def __init__(self, profile: Path):
    theirs, self._to = os.pipe()
    self._from, answers = os.pipe()
    # Not `preexec_fn`: JAX has threads, and forking them may deadlock.
    self._process = subprocess.Popen(
        ['bash', '-c', f'exec "$0" "$@" 3<&{theirs} 4>&{answers}', PROGRAM, *FLAGS, f'--user-data-dir={profile}'],
        pass_fds=(theirs, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    os.close(theirs)
    os.close(answers)
    self._read, self._sent, self.events = b'', 0, []

  def __enter__(self) -> Browser:
    return self

  def __exit__(self, *_) -> None:
    os.close(self._to)  # it ends when nobody speaks to it any more
    try:
      self._process.wait(10)
    except subprocess.TimeoutExpired:
      os.killpg(self._process.pid, signal.SIGKILL)
      self._process.wait()
    os.close(self._from)

  def call(self, method: str, session: str | None = None, **params) -> dict[str, Any]:
    """One command and its result; events that come before it are kept in `events`."""
    self._sent += 1
    message = {'id': self._sent, 'method': method, 'params': params} | ({'sessionId': session} if session else {})
    os.write(self._to, json.dumps(message).encode() + b'\0')
    reply = self._until(lambda found: found.get('id') == self._sent)
    assert 'error' not in reply, f'{method}: {reply["error"]}'
    return reply['result']

  def wait(self, method: str, session: str) -> None:
    """Until an event has come that no earlier `wait` has seen."""
    of = lambda found: (found.get('method'), found.get('sessionId')) == (method, session)
    known = next(filter(of, self.events), None)
    if known is None:
      self._until(of)
      known = self.events[-1]
    self.events.remove(known)

  def open(self, page: Path, width: int = 1280, height: int = 900) -> Tab:
    """A file in a new tab of this size, loaded."""
    target = self.call('Target.createTarget', url='about:blank')['targetId']
    session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
    tab = Tab(self, session)
    tab.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=False)
    for domain in ('Page', 'Runtime', 'Log', 'Network'):
      tab.call(f'{domain}.enable')
    tab.call('Page.navigate', url=page.as_uri())
    self.wait('Page.loadEventFired', session)
    tab.settle()
    return tab

  def _until(self, wanted: Callable[[dict], bool]) -> dict:
    """The next message that is wanted; all events up to there are kept."""
    deadline = time.monotonic() + PATIENCE
    while True:
      while b'\0' in self._read:
        message, _, self._read = self._read.partition(b'\0')
        found = json.loads(message)
        if 'method' in found:
          self.events.append(found)
        if wanted(found):
          return found
      if not select.select([self._from], [], [], max(0, deadline - time.monotonic()))[0]:
        raise TimeoutError('Chromium does not answer')
      more = os.read(self._from, 1 << 20)
      if not more:
        raise EOFError('Chromium has ended')
      self._read += more


class Tab:
  """One page. `element` is always a JavaScript expression that gives an element."""

  def __init__(self, browser: Browser, session: str):
    self._browser, self._session = browser, session

  def call(self, method: str, **params) -> dict[str, Any]:
    return self._browser.call(method, self._session, **params)

  def evaluate(self, expression: str) -> Any:
    """The JSON value of an expression, awaited; the page's content policy does not bind the debugger."""
    found = self.call('Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True)
    assert 'exceptionDetails' not in found, found['exceptionDetails']
    return found['result'].get('value')

  def settle(self) -> None:
    """Two frames: what was asked for is drawn, and what the page asked for has been answered."""
    self.evaluate('new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 50))))')

  def click(self, element: str) -> None:
    """Brings an element into view and clicks into its middle with the left button of a mouse."""
    x, y = self.evaluate(
        f'(e => {{ e.scrollIntoView({{block: "center", behavior: "instant"}}); const r = e.getBoundingClientRect();'
        f' return [r.x + r.width / 2, r.y + r.height / 2]; }})({element})')
    for kind, button in (('mouseMoved', 'none'), ('mousePressed', 'left'), ('mouseReleased', 'left')):
      self.call('Input.dispatchMouseEvent', type=kind, x=x, y=y, button=button, clickCount=int(button == 'left'))
    self.settle()

  def press(self, key: str) -> None:
    """Presses and releases one of `KEYS`."""
    self.call('Input.dispatchKeyEvent', type='keyDown', **KEYS[key])
    self.call('Input.dispatchKeyEvent', type='keyUp', **KEYS[key])
    self.settle()

  def errors(self) -> list[str]:
    """What the console shows as errors: of the page's scripts, its policy, its requests, and uncaught exceptions."""
    out = []
    for event in (e for e in self._browser.events if e.get('sessionId') == self._session):
      said = event['params']
      if event['method'] == 'Log.entryAdded' and said['entry']['level'] == 'error':
        out.append(said['entry']['text'])
      elif event['method'] == 'Runtime.consoleAPICalled' and said['type'] in ('error', 'assert'):
        out.append(' '.join(str(a.get('value', a.get('description'))) for a in said['args']))
      elif event['method'] == 'Runtime.exceptionThrown':
        out.append(said['exceptionDetails']['exception'].get('description', said['exceptionDetails']['text']))
    return out

  def requests(self) -> list[str]:
    """Addresses that the page asked for, itself the first."""
    return [e['params']['request']['url'] for e in self._browser.events
            if e.get('sessionId') == self._session and e['method'] == 'Network.requestWillBeSent']
