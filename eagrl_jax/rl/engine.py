"""Completions of a server that speaks vLLM's HTTP interface: token ids in, token ids and log-probabilities out.

A request is `POST <url>/completions` with the fields of vLLM's `CompletionRequest`: the prompt as token ids, `n`
answers, and every sampling field that the server would else take from the model's generation_config.json.
`return_token_ids` (vLLM 0.10.2 and later) makes a choice carry `token_ids`; `logprobs=0` adds
`logprobs.token_logprobs` of the sampled tokens alone, which under `--logprobs-mode raw_logprobs`, vLLM's default, are
those before temperature: at temperature 1. `prompt_logprobs=0` asks for those of the prompt's own tokens.
Answer i of a prompt is drawn with `seed + i`. Source: docs.vllm.ai, OpenAI-compatible server, completions; sleep mode.

A prompt is a patient's record: it is sent to that server alone, past any proxy, and no reply is quoted in an error.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from eagrl_jax.types import EagrlError

LEAST = -1e30  # of a log-probability: float32 holds it; and the reply may hold a whole number of any length
LARGEST = 1 << 28  # bytes of a reply; one of 16 answers of 4096 tokens has some 10 MB
IN_FLIGHT = 256  # requests at once; the server batches them
Answer = tuple[list[int], list[float]]  # token ids with the end token, log-probabilities at temperature 1

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclasses.dataclass(frozen=True)
class Sampling:
  """What is asked of whoever writes the answers; see `lm.sampler.generate`."""

  group: int
  max_new: int
  temperature: float
  stop_ids: tuple[int, ...]
  pad_id: int


@dataclasses.dataclass(frozen=True)
class Server:
  """Where it is: `url` ends in /v1; `model` is the name it serves; `timeout` is in seconds, of one request."""

  url: str
  model: str
  timeout: float

  def refuse(self, what: str) -> EagrlError:
    return EagrlError(f'rl.rollouts={self.url}: {what}')


def complete(server: Server, sampling: Sampling, vocab_size: int, prompts: Sequence[list[int]],
             seeds: Sequence[int]) -> list[list[Answer]]:
  """`sampling.group` answers to each prompt, all prompts at once.

  Raises:
    EagrlError: no server, no answer in time, or a reply that does not hold what was asked for.
  """
  def one(prompt: list[int], seed: int) -> list[Answer]:
    reply = _call(server, f'{server.url}/completions', request(server, sampling, prompt, seed))
    return read(server, sampling, vocab_size, prompt, reply)

  pool = ThreadPoolExecutor(min(len(prompts), IN_FLIGHT))
  try:
    return list(pool.map(one, prompts, seeds))
  finally:
    pool.shutdown(wait=False, cancel_futures=True)  # after a failure the others are not waited for


def request(server: Server, sampling: Sampling, prompt: list[int], seed: int) -> dict[str, Any]:
  """The body; of two ways to end an answer, the model's own is switched off, so that ours alone counts."""
  return {
      'model': server.model, 'prompt': prompt, 'n': sampling.group, 'max_tokens': sampling.max_new,
      'temperature': sampling.temperature, 'seed': seed, 'stop_token_ids': list(sampling.stop_ids), 'ignore_eos': True,
      'logprobs': 0, 'return_token_ids': True, 'top_p': 1.0, 'top_k': 0, 'min_p': 0.0, 'repetition_penalty': 1.0,
      'presence_penalty': 0.0, 'frequency_penalty': 0.0}


def read(server: Server, sampling: Sampling, vocab_size: int, prompt: list[int], reply: Any) -> list[Answer]:
  """The answers of a reply, in the order of their index, once they have shown to be what was asked for."""
  choices = reply.get('choices') if isinstance(reply, dict) else None
  if not isinstance(choices, list) or not all(isinstance(c, dict) for c in choices):
    raise server.refuse('the reply holds no choices; is this the /v1 of a vLLM server?')
  if (not all(type(c.get('index')) is int for c in choices)
      or sorted(c['index'] for c in choices) != list(range(sampling.group))):
    raise server.refuse(f'{len(choices)} answers came back where rl.group={sampling.group} were asked for')
  return [_answer(server, sampling, vocab_size, prompt, c) for c in sorted(choices, key=lambda c: c['index'])]


def _answer(server: Server, sampling: Sampling, vocab_size: int, prompt: list[int], choice: dict) -> Answer:
  ids, logprobs = choice.get('token_ids'), choice.get('logprobs')
  if not isinstance(ids, list) or not ids:
    raise server.refuse('the reply holds no token_ids; vLLM 0.10.2 or later returns them')
  values = logprobs.get('token_logprobs') if isinstance(logprobs, dict) else None
  if not isinstance(values, list) or len(values) != len(ids) or not all(_is_logprob(x) for x in values):
    raise server.refuse('the reply holds no log-probability for every token; serve with --logprobs-mode raw_logprobs')
  if not all(type(i) is int and 0 <= i < vocab_size for i in ids):
    raise server.refuse(f'it writes token ids outside the vocabulary of the policy, {vocab_size}; another model is '
                        'served, see rl.rollouts_model')
  if choice.get('prompt_token_ids', prompt) != prompt:
    raise server.refuse('it read another prompt than was sent; serve without prompt truncation')
  ends = [i for i, token in enumerate(ids) if token in sampling.stop_ids]
  if ends[:1] != [len(ids) - 1] and (ends or len(ids) != sampling.max_new):
    raise server.refuse(f'an answer ends neither at the stop token nor after rl.max_new={sampling.max_new} tokens')
  return ids, [min(float(x), 0.0) for x in values]


def _is_logprob(x: Any) -> bool:
  return isinstance(x, (int, float)) and not isinstance(x, bool) and LEAST < x < 1e-3  # rounding above 0


def served(server: Server, folder: str) -> Server:
  """The server with the name of its model filled in, once it is known to have been started on `folder`.

  Raises:
    EagrlError: it serves something else, which it would read again at every refresh, and the policy never.
  """
  reply = _call(server, f'{server.url}/models')
  cards = reply.get('data') if isinstance(reply, dict) else None
  if not isinstance(cards, list) or not all(isinstance(c, dict) for c in cards):
    raise server.refuse('the reply holds no list of models; is this the /v1 of a vLLM server?')
  mine = [c for c in cards if not server.model or c.get('id') == server.model]
  if len(mine) != 1:
    raise server.refuse(f'it serves {len(mine)} models named rl.rollouts_model={server.model!r}; name one of those '
                        'that it serves')
  if mine[0].get('root') != folder:
    raise server.refuse('it was not started on the folder that the policy is written to')
  return dataclasses.replace(server, model=str(mine[0].get('id')))


def prompt_logprobs(server: Server, prompt: list[int]) -> list[float]:
  """Of every token of `prompt` but the first, given those before it, under the weights that it serves."""
  reply = _call(server, f'{server.url}/completions', {
      'model': server.model, 'prompt': prompt, 'max_tokens': 1, 'temperature': 0.0, 'prompt_logprobs': 0})
  try:
    values = [entry[str(token)]['logprob'] for token, entry in
              zip(prompt[1:], reply['choices'][0]['prompt_logprobs'][1:], strict=True)]
  except (TypeError, KeyError, IndexError, ValueError):
    values = [None]
  if not all(_is_logprob(x) for x in values):
    raise server.refuse('the reply holds no log-probability for every token of the prompt (prompt_logprobs)')
  return values


def reload(server: Server) -> None:
  """Makes it read its folder again and forget the keys of the old weights; needs VLLM_SERVER_DEV_MODE=1."""
  root = server.url.removesuffix('/v1')
  _call(server, f'{root}/collective_rpc', {'method': 'reload_weights'})
  _call(server, f'{root}/reset_prefix_cache', {})


def _call(server: Server, url: str, body: dict | None = None) -> Any:
  """The reply as JSON, None where it is empty; POST with a body, else GET."""
  data = None if body is None else json.dumps(body).encode()
  try:
    with _direct.open(urllib.request.Request(url, data, {'Content-Type': 'application/json'}),
                      timeout=server.timeout) as reply:
      text = reply.read(LARGEST + 1)  # whatever length it claims
      if reply.length and len(text) <= LARGEST:  # of that length: with a limit it is not looked at
        raise http.client.IncompleteRead(text)
    if len(text) > LARGEST:
      raise server.refuse(f'the reply is longer than {LARGEST >> 20} MiB; is this the /v1 of a vLLM server?')
    return json.loads(text) if text else None
  except urllib.error.HTTPError as e:
    e.close()
    raise server.refuse(_meaning(e.code, url)) from None  # the server's words may quote the prompt
  except TimeoutError:
    raise server.refuse(f'no answer within rl.rollouts_timeout={server.timeout:g} seconds') from None
  except (OSError, http.client.HTTPException) as e:
    if isinstance(getattr(e, 'reason', None), TimeoutError):
      raise server.refuse(f'no answer within rl.rollouts_timeout={server.timeout:g} seconds') from None
    raise server.refuse(f'no server answers ({type(getattr(e, "reason", e)).__name__})') from None
  except (ValueError, RecursionError):
    raise server.refuse('the reply is no JSON; is this the /v1 of a vLLM server?') from None


def _meaning(status: int, url: str) -> str:
  last = url.rsplit('/', 1)[1]
  if status == 404 and last in ('collective_rpc', 'reset_prefix_cache'):
    return f'it has no /{last}, by which new weights are read; start it with VLLM_SERVER_DEV_MODE=1'
  why = {400: "the prompt or rl.max_new is longer than its context, or its vocabulary is not the policy's",
         401: 'it wants a key; serve without --api-key', 404: 'it does not serve rl.rollouts_model',
         500: 'the server failed, and its log says of what'}
  return f'/{last} was refused with status {status}' + (f': {why[status]}' if status in why else '')
