"""Chat templates: programs that come with the weights, run in a sandbox with what transformers lends them."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence

import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

TODAY = datetime.datetime(2024, 7, 26)  # the date that Llama 3's own template falls back on without a clock


def render(template: str, turns: Sequence[tuple[str, str]], tokens: dict[str, str | None], *,
           add_generation_prompt: bool) -> str:
  """The text of `turns`, (role, words) each.

  A template that asks for the date is told `TODAY`, so that no prompt depends on the day.

  Args:
    tokens: the special tokens by their names; what is None is unknown to the template, and prints nothing.

  Raises:
    Exception: of any kind, and its words may be those of a turn.
  """
  messages = [{'role': role, 'content': words} for role, words in turns]
  known = {name: token for name, token in tokens.items() if token is not None}
  return _compile(template).render(messages=messages, tools=None, documents=None,
                                   add_generation_prompt=add_generation_prompt, **known)


class _Generation(jinja2.ext.Extension):
  """`{% generation %}`: where transformers marks what an assistant wrote; here a block like any other."""

  tags = {'generation'}  # noqa: RUF012  the type that jinja2 declares

  def parse(self, parser):
    line = next(parser.stream).lineno
    return jinja2.nodes.Scope(parser.parse_statements(('name:endgeneration',), drop_needle=True), lineno=line)


def _compile(template: str) -> jinja2.Template:
  def raise_exception(message):
    raise jinja2.TemplateError(message)

  env = jinja2.sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, 'jinja2.ext.loopcontrols'])
  env.globals['raise_exception'] = raise_exception
  env.globals['strftime_now'] = TODAY.strftime
  env.filters['tojson'] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
  return env.from_string(template)
