"""An OpenAI-compatible server for a model under a mask: llama-cpp-python's, driving our patched library.

What is ours: the mask on its context (``serve_llama``), the gate that every request passes (``serve_gate``), names that
tell a masked model from its base, and errors that are the client's told as such.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import ipaddress
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import library
from .chat import ChatTemplate
from .chat_settings import ChatSettings
from .errors import InputError
from .experts import Expert, NativeMask
from .model_file import name_of
from .serve_gate import Gate, abandoned, error_object
from .serve_llama import LoadOptions, masked_llama
from .serve_scoring import Scoring

ROUTES = ("/v1/completions", "/v1/chat/completions")  # of llama-cpp-python's server; no others are offered
GRACE_SECONDS = 5


@dataclass(frozen=True)
class Served:
    """A model file and what is done to its experts. ``experts`` empty: the model as it is."""

    path: Path
    experts: tuple[Expert, ...] = ()
    mode: str = "zero"
    gain: float = 0.0

    @property
    def id(self) -> str:
        """The model's name for clients: the file's, then number, mode and a hash of the masked experts.

        >>> Served(Path("big-00001-of-00002.gguf")).id, Served(Path("demo.gguf"), (Expert(3, 1),), "reroute").id
        ('big', 'demo+mask-1-experts-reroute-8d701a')
        """
        name = name_of(self.path)
        if not self.experts:
            return name
        how = self.mode if self.mode != "zero" else f"gain-{self.gain:g}" if self.gain else ""
        listed = ",".join(sorted(map(str, self.experts)))
        digest = hashlib.sha256(f"{listed} {self.mode} {self.gain!r}".encode()).hexdigest()[:6]
        return "-".join(filter(None, (f"{name}+mask-{len(self.experts)}-experts", how, digest)))

    @property
    def native_mask(self) -> NativeMask:
        """The mask as the native module takes it."""
        return [(e.layer, e.expert, self.mode, self.gain) for e in self.experts]

    def card(self, chat: ChatTemplate) -> dict[str, Any]:
        """The entry of /v1/models; ``chat`` says what the model is shown."""
        from . import __version__
        from .model_file import fingerprint

        mask = {"experts": list(map(str, self.experts)), "mode": self.mode, "gain": self.gain}
        facts = {"mask": mask if self.experts else None, "fingerprint": fingerprint(self.path)}
        versions = {"tool_version": __version__, "upstream_id": library.UPSTREAM_ID}
        return {
            "id": self.id,
            "object": "model",
            "created": int(self.path.stat().st_mtime),
            "owned_by": "safex-native",
            "metadata": {"file": self.path.name, **facts, **chat.describe(), **versions},
        }


class OneModel:
    """The server's way to its model: there is one, whatever name a request has."""

    def __init__(self, llama: Any) -> None:
        """Keep the model."""
        self._llama = llama

    def __call__(self, _: str | None = None) -> Any:
        """The model."""
        return self._llama


def make_app(llama: Any, card: dict[str, Any]) -> Any:
    """llama-cpp-python's completion routes and our /v1/models, as a FastAPI application without CORS."""
    fastapi = importlib.import_module("fastapi")
    server: Any = importlib.import_module("llama_cpp.server.app")
    settings = importlib.import_module("llama_cpp.server.settings")
    context = importlib.import_module("starlette_context.middleware").RawContextMiddleware
    layers = [importlib.import_module("fastapi.middleware").Middleware(context)]
    app = fastapi.FastAPI(middleware=layers, docs_url=None, redoc_url=None, openapi_url=None)
    server.set_server_settings(
        settings.ServerSettings.model_construct(api_key=None, interrupt_requests=False)
    )
    server._llama_proxy = OneModel(Scoring(llama))
    explained = functools.partial(explain, n_ctx=llama._n_ctx)
    server.get_event_publisher = _reporting(server.get_event_publisher, explained)
    for route in server.router.routes:
        if route.path in ROUTES:
            route.error_message_wrapper = explained
            app.router.routes.append(route)

    def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    def model(name: str) -> dict[str, Any]:
        if name != card["id"]:
            raise fastapi.HTTPException(404, f"there is no model {name!r} here, only {card['id']!r}")
        return card

    app.add_api_route("/v1/models", models)
    app.add_api_route("/v1/models/{name:path}", model)
    return app


def explain(error: Exception, n_ctx: int, body: object = None) -> tuple[int, dict[str, Any]]:
    """HTTP status and OpenAI's error object: 400 for what the request is to blame for, 500 for the rest."""
    from jinja2 import TemplateError

    if isinstance(error, RuntimeError):
        return 500, error_object(f"computing failed: {error}", "server_error")
    if hasattr(error, "errors"):  # pydantic's list of what is wrong
        found = error.errors()
        # of a message that is of no kind, what is wrong besides not being of the first kind
        first = next((e for e in found if e["loc"][-1] != "role"), found[0])
        place = ".".join(map(str, first["loc"][1:]))
        return 400, error_object(f"{place}: {first['msg']}", param=place)
    if isinstance(error, (ValueError, TypeError, LookupError, AssertionError, TemplateError)):
        message, too_long = re.subn(r"(exceed context window of) \d+", rf"\1 {n_ctx}", str(error))
        code = "context_length_exceeded" if too_long else None
        message = message or f"the request can't be served ({type(error).__name__})"
        if "logits_all" in message:
            message = "log-probabilities are not kept: start the server with --logprobs"
        return 400, error_object(message, code=code)
    return 500, error_object(f"{type(error).__name__}: {error}", "server_error")


def _reporting(publish: Callable[..., Any], explained: Callable[..., Any]) -> Callable[..., Any]:
    """A stream that fails ends with an error event instead of a connection that breaks."""

    async def publish_or_explain(*, inner_send_chan: Any, **rest: Any) -> None:
        async with inner_send_chan.clone() as last:
            try:
                await publish(inner_send_chan=inner_send_chan, **rest)
            except Exception as error:
                await last.send({"data": json.dumps({"error": explained(error)[1]})})

    return publish_or_explain


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one. Raises InputError where host or port can't be had."""
    if port > 65535:
        raise InputError(f"port {port}: ports end at 65535; choose another --port")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except (OSError, UnicodeError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(
            f"can't listen on {host} port {port}: {reason}; choose another --host or --port"
        ) from None
    return made


def is_loopback(listening: socket.socket) -> bool:
    """Whether only this machine reaches the socket."""
    return ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


def url_of(listening: socket.socket) -> str:
    """The base URL for clients."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def serve(
    served: Served,
    options: LoadOptions,
    listening: socket.socket,
    api_key: str | None = None,
    on_ready: Callable[[dict[str, Any], list[str]], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM. Raises what ``masked_llama`` raises before the first request is taken.

    ``on_ready(card, notes)`` hears of the entry of /v1/models, and what to know of the settings of the chat.
    """
    uvicorn = importlib.import_module("uvicorn")
    with masked_llama(served.path, served.native_mask, options) as llama:
        card = served.card(llama.shown)
        notes = [] if options.chat == ChatSettings() else llama.shown.notes()
        gate = Gate(make_app(llama, card), served.id, llama.n_vocab(), api_key, is_loopback(listening))
        settings = uvicorn.Config(
            gate, log_level="error", access_log=False, timeout_graceful_shutdown=GRACE_SECONDS
        )
        server = uvicorn.Server(settings)
        start, stop = server.startup, server.shutdown
        stopping = _stoppable(llama)

        async def startup(sockets: list[socket.socket] | None = None) -> None:
            await start(sockets)
            if server.started and on_ready:
                on_ready(card, notes)

        async def shutdown(sockets: list[socket.socket] | None = None) -> None:
            stopping.set()
            await stop(sockets)

        server.startup, server.shutdown = startup, shutdown
        server.run([listening])


def _stoppable(llama: Any) -> threading.Event:
    """Setting the event ends what is being generated at its next token, as a client's going does."""
    stopping = threading.Event()
    evaluate = llama.eval

    def evaluate_or_stop(tokens: Any) -> None:
        if stopping.is_set() or abandoned():
            raise RuntimeError("the client has gone, or the server stops")
        evaluate(tokens)

    llama.eval = evaluate_or_stop
    return stopping
