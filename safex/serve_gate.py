"""What every request passes before it reaches the server: key, origin, size, JSON, and OpenAI's own defaults."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import hmac
import json
import math
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NoReturn, TypeAlias

MAX_BODY = 4 * 1024 * 1024  # bytes of a request; a context of 128k tokens is about 0.6 MB of text
MAX_READ = 16 * MAX_BODY
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")

# Where a request says nothing: what OpenAI's servers do. llama-cpp-python would cut the distribution and punish
# repetitions, so that temperature 0 would not be greedy.
DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}

# Not OpenAI's. A grammar can recurse until the process dies; the others contradict or silently drop one another.
REFUSED = (
    "grammar",
    "logit_bias_type",
    "min_tokens",
    "mirostat_mode",
    "mirostat_tau",
    "mirostat_eta",
    "functions",
    "function_call",
    "suffix",
)
# What the model is shown is the server's to say, and stands in /v1/models; other servers take these from requests.
SHOWN = (
    "chat_template",
    "chat_template_kwargs",
    "reasoning_effort",
    "add_generation_prompt",
    "continue_final_message",
)
MAX_BIAS = 100  # OpenAI's bound

# A prompt of tokens, on its way through llama-cpp-python's server, which takes text only: this, then numbers.
TOKENS = "\0tokens "

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_gone: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("gone", default=None)


def abandoned() -> bool:
    """Whether the client of the request that this thread works for has closed its connection."""
    event = _gone.get()
    return event is not None and event.is_set()


def error_object(
    message: str, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"message": message, "type": kind, "param": param, "code": code}


class RefusedError(Exception):
    """A request that goes no further: its status, why, and OpenAI's code."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        """Keep the answer."""
        super().__init__(message)
        self.status = status
        self.code = code


class Gate:
    """An ASGI application around another one.

    ``model_id`` is the only model and ``n_vocab`` its number of tokens; ``loopback``: requests must name this machine
    as their host, so that no web page reaches the server by a name of its own.
    """

    def __init__(self, app: App, model_id: str, n_vocab: int, api_key: str | None, loopback: bool) -> None:
        """Keep what requests are held against."""
        self._app = app
        self._model_id = model_id
        self._n_vocab = n_vocab
        self._api_key = api_key
        self._loopback = loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or hand it on."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            self._check_sender(headers)
            if scope["method"] != "POST":
                return await self._app(scope, receive, send)
            request = prepare(await read(headers, receive), self._model_id, self._n_vocab)
        except RefusedError as refused:
            return await _answer(send, refused)
        await self._forward(scope, request, receive, send)

    def _check_sender(self, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self._loopback and name.lower() not in LOCAL_NAMES:
            raise RefusedError(403, f"this server is for this machine only, not for {host!r}")
        given = headers.get("authorization", "").removeprefix("Bearer ").encode()
        if self._api_key is not None and not hmac.compare_digest(given, self._api_key.encode()):
            raise RefusedError(401, "the API key is missing or wrong", "invalid_api_key")

    async def _forward(self, scope: Scope, request: bytes, receive: Receive, send: Send) -> None:
        incoming = Incoming(request, receive)
        length = (b"content-length", str(len(request)).encode())
        others = [(n, v) for n, v in scope["headers"] if n not in (b"content-length", b"transfer-encoding")]
        watch = asyncio.create_task(incoming.watch())
        token = _gone.set(incoming.gone)
        try:
            await self._app({**scope, "headers": [*others, length]}, incoming.receive, send)
        finally:
            _gone.reset(token)
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch


class Incoming:
    """A request's body as it goes on, then the news that its client has gone."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        """``receive`` is the server's, read to the end of the body."""
        self.gone = threading.Event()
        self._body: bytes | None = body
        self._receive = receive
        self._left = asyncio.Event()

    async def watch(self) -> None:
        """Wait for the client to go."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone.set()
        self._left.set()

    async def receive(self) -> Message:
        """What the application is told."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}


async def read(headers: dict[str, str], receive: Receive) -> bytes:
    """The body of a request. One too large is read on for a while, so that its client hears why, and dropped."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RefusedError(415, f"the content type is {kind!r}, expected application/json")
    parts: list[bytes] = []
    size = 0
    more = True
    while more and size <= MAX_READ:
        message = await receive()
        size += len(message.get("body", b""))
        if size <= MAX_BODY:
            parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    if size > MAX_BODY:
        raise RefusedError(413, f"the request is larger than {MAX_BODY} bytes")
    return b"".join(parts)


def prepare(body: bytes, model_id: str, n_vocab: int) -> bytes:
    """The request as llama-cpp-python takes it, with ``DEFAULTS``; raises RefusedError for what it can't mean."""
    try:
        request = json.loads(body, parse_float=_finite, parse_constant=_not_finite)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"the body is no JSON: {error}") from None
    if not isinstance(request, dict):
        raise RefusedError(400, "the body is no JSON object")
    given = {key: value for key, value in request.items() if value is not None}
    _check(given, model_id)
    _check_bias(given.get("logit_bias", {}), n_vocab)
    if "prompt" in given:
        given["prompt"] = _prompt(given["prompt"], n_vocab)
    if "max_completion_tokens" in given:
        given.setdefault("max_tokens", given["max_completion_tokens"])
    for message in given["messages"] if isinstance(given.get("messages"), list) else ():
        if isinstance(message, dict) and message.get("content", "") is None:
            message["content"] = ""  # as OpenAI allows beside tool calls
    try:
        return json.dumps({**DEFAULTS, **given, "model": model_id}, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RefusedError(400, "the request holds half a surrogate pair, which is no text") from None


def _check(given: dict[str, Any], model_id: str) -> None:
    name = given.get("model", model_id)
    if name != model_id:
        raise RefusedError(404, f"there is no model {name!r} here, only {model_id!r}", "model_not_found")
    for key in REFUSED:
        if key in given:
            raise RefusedError(400, f"{key} is not offered: this server takes OpenAI's parameters")
    for key in SHOWN:
        if key in given:
            raise RefusedError(
                400,
                f"{key} is not taken from a request: start the server with --template-kwargs, --thinking, --system or "
                "--date, so that all requests are shown alike",
            )
    for key in ("n", "best_of"):
        if given.get(key, 1) != 1:
            raise RefusedError(400, f"{key} is {given[key]!r}; this server gives one answer to a request")
    temperature = given.get("temperature", 1.0)
    if isinstance(temperature, (int, float)) and temperature < 0:
        raise RefusedError(400, f"temperature is {temperature}, expected 0 or more")
    if given.get("echo") and given.get("stream"):
        raise RefusedError(400, "echo is not offered in a stream: leave out one of both")


def _prompt(prompt: Any, n_vocab: int) -> Any:
    """The one prompt of a request: text, or tokens written as text. Raises RefusedError."""
    if isinstance(prompt, list) and not (prompt and all(type(token) is int for token in prompt)):
        if len(prompt) != 1:
            raise RefusedError(400, "expected one prompt that is not empty")
        prompt = prompt[0]
    if prompt in ("", []) or (isinstance(prompt, str) and prompt.startswith(TOKENS)):
        raise RefusedError(400, "expected one prompt that is not empty")
    if not isinstance(prompt, list):
        return prompt
    wrong = next((token for token in prompt if type(token) is not int or not 0 <= token < n_vocab), None)
    if wrong is not None:
        raise RefusedError(400, f"prompt: there is no token {wrong!r:.40}, only 0 to {n_vocab - 1}")
    return TOKENS + " ".join(map(str, prompt))


def _check_bias(bias: Any, n_vocab: int) -> None:
    if not isinstance(bias, dict):
        raise RefusedError(400, 'logit_bias is no object; expected {"TOKEN": number}')
    for token, value in bias.items():
        if not (token.isdecimal() and len(token) < 12 and int(token) < n_vocab):
            raise RefusedError(400, f"logit_bias: there is no token {token[:40]!r}, only 0 to {n_vocab - 1}")
        if not isinstance(value, (int, float)) or abs(value) > MAX_BIAS:
            raise RefusedError(
                400, f"logit_bias of token {token}: expected a number from -{MAX_BIAS} to {MAX_BIAS}"
            )


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _not_finite(text)


def _not_finite(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number that fits")


async def _answer(send: Send, refused: RefusedError) -> None:
    body = json.dumps({"error": error_object(str(refused), code=refused.code)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    # What the client still sends is not read.
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
