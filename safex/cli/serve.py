"""``safex-native serve``: an OpenAI-compatible server for a model under a mask."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safex.errors import InputError
from safex.experts import MODES

from .options import FLASH, MODEL_HELP, add_model_options, chat_settings
from .output import Output, to_stderr
from .parser import finite, not_negative

if TYPE_CHECKING:
    import socket

    from safex.serve import Served
    from safex.serve_llama import LoadOptions

USAGE = "MODEL [--mask EXPERTS] [options]"
DESCRIPTION = """\
An OpenAI-compatible server for MODEL with the mask on every request, so that inspect-ai, lm-eval or garak evaluate a
masked model unchanged. It listens on this machine only unless --host says otherwise. The model's id at /v1/models
tells the mask: NAME+mask-12-experts-HASH. Where a request is silent, OpenAI's defaults hold; temperature 0 is greedy.
Needs pip install 'safex-native[serve]'."""
EXAMPLE = """\
  safex-native serve demo --mask experts.json:ctrl
  safex-native serve model.gguf --mask 3:17,4:2 --mode reroute --gpu-layers -1 --port 8080
  curl http://127.0.0.1:8000/v1/models"""
KEY_VARIABLE = "SAFEX_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL_HELP)
    add(
        "--mask",
        metavar="EXPERTS",
        help="FILE, FILE:group or L:E,L:E: the experts to mask (default: none, the model as it is)",
    )
    add("--mode", choices=MODES, help="zero = output times the gain, reroute = never selected (default zero)")
    add("--gain", type=finite, metavar="G", help="factor on the experts' output in mode zero (default 0)")
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1, this machine only)")
    add("--port", type=not_negative, default=8000, help="port to listen on, 0 for a free one (default 8000)")
    add(
        "--api-key",
        metavar="K",
        help=f"clients must send this key (default: the variable {KEY_VARIABLE}, or else none)",
    )
    add("--logprobs", action="store_true", help="answer requests for log-probabilities; takes more memory")
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Listen, load, serve until interrupted."""
    from safex import serve, serve_llama

    out = Output(args)
    served = what_to_serve(args)
    options = load_options(args)
    serve_llama.check_installed()
    api_key = args.api_key or os.environ.get(KEY_VARIABLE)
    with serve.listen(args.host, args.port) as listening:
        if not serve.is_loopback(listening):
            warn(args.host, api_key)
        # llama-cpp-python's server prints to stdout which clients have gone
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            serve.serve(
                served, options, listening, api_key, functools.partial(say_ready, out, served, listening)
            )
    return 0


def what_to_serve(args: argparse.Namespace) -> Served:
    """Model and mask as the options say."""
    from safex.model_file import resolve
    from safex.serve import Served

    path = resolve(args.model)
    if args.mask is None:
        given = next((name for name in ("mode", "gain") if getattr(args, name) is not None), None)
        if given:
            raise InputError(f"--{given} needs --mask: without it the model is served as it is")
        return Served(path)
    mode = args.mode or "zero"
    if args.gain is not None and mode != "zero":
        raise InputError(f"--gain is the factor of mode zero; mode {mode} has none")
    from safex.expert_set import parse_experts

    return Served(path, tuple(parse_experts(args.mask)), mode, args.gain or 0.0)


def load_options(args: argparse.Namespace) -> LoadOptions:
    """How to load the model."""
    from safex.chat_settings import ChatSettings
    from safex.placement import placement
    from safex.serve_llama import LoadOptions

    return LoadOptions(
        n_ctx=args.ctx,
        n_ubatch=args.ubatch,
        n_threads=args.threads,
        n_gpu_layers=args.gpu_layers,
        flash_attn=FLASH[args.flash_attn],
        kv_type=args.kv_type,
        mmap=not args.no_mmap,
        logprobs=args.logprobs,
        overrides=tuple(placement(dict(args.override_tensor), args.n_cpu_moe)),
        chat=ChatSettings.of(**chat_settings(args)),
    )


def warn(host: str, api_key: str | None) -> None:
    """Say on stderr, whatever --quiet says, who can reach the server."""
    who = "who has the key" if api_key else "(there is no --api-key)"
    to_stderr(f"warning: listening on {host}: everybody {who} who reaches this machine can use the model")


def say_ready(
    out: Output, served: Served, listening: socket.socket, card: dict[str, Any], notes: list[str]
) -> None:
    """One line, or JSON, once requests are taken."""
    from safex.serve import url_of

    url = url_of(listening)
    mask = f"{len(served.experts)} experts, mode {served.mode}, gain {served.gain:g}"
    if served.mode != "zero":
        mask = f"{len(served.experts)} experts, mode {served.mode}"
    line = f"Ready: {url} serves {served.id} (mask: {mask if served.experts else 'none'}); Ctrl-C ends it"
    for note in notes:
        out.note(f"note: {note}")
    with contextlib.redirect_stdout(sys.__stdout__):
        out.text(line)
        out.result({"url": url, **card})
