"""llama-cpp-python driving our patched library, with a mask on the context that it makes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import library
from .chat import ChatTemplate, special_tokens
from .chat_settings import ChatSettings
from .cores import available_cores
from .errors import DeviceError, InputError, UnsupportedError
from .experts import NativeMask

LLAMA_CPP_PYTHON = "0.3.36"  # its structures are those of our library: native/upstream/PIN
REQUIRED = ("llama_cpp", "fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings")
LOG_LEVEL_ERROR = 4  # ggml.h
KEPT_LINES = 20


@dataclass(frozen=True)
class LoadOptions:
    """How llama-cpp-python loads the model; as in ``safex.Model``. ``logprobs``: keep the logits of every token.

    ``chat`` is what it is shown beside the requests.
    """

    n_ctx: int = 4096
    n_ubatch: int = 512
    n_threads: int | None = None
    n_gpu_layers: int = 0
    flash_attn: bool | None = None
    kv_type: str = "f16"
    mmap: bool = True
    logprobs: bool = False
    chat: ChatSettings = field(default_factory=ChatSettings)


def check_installed() -> None:
    """Raise InputError where llama-cpp-python or what its server needs is missing, or of a version that can't fit."""
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"serve needs {', '.join(missing)}, which is not installed: pip install 'safex-native[serve]', and "
            "llama-cpp-python as scripts/quickstart.sh installs it"
        )
    version = importlib.metadata.version("llama_cpp_python")
    if version != LLAMA_CPP_PYTHON:
        raise InputError(
            f"llama-cpp-python {version} is installed, but this library is that of {LLAMA_CPP_PYTHON}: "
            f"pip install llama-cpp-python=={LLAMA_CPP_PYTHON} -C cmake.define.LLAMA_BUILD=OFF"
        )


def llama_cpp_python() -> Any:
    """The package ``llama_cpp``, driving our library. Raises InputError, and DeviceError where it drives another."""
    check_installed()
    library.native()
    folder = library.folder() / "llama_cpp"
    with _environment("LLAMA_CPP_LIB_PATH", str(folder)):
        import llama_cpp
    found = Path(llama_cpp.llama_cpp._lib._name)
    if found.parent != folder:
        raise DeviceError(
            f"llama-cpp-python was imported before with {found}: serve needs a process of its own"
        )
    return llama_cpp


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def masked_llama(path: Path, mask: NativeMask, options: LoadOptions) -> Iterator[Any]:
    """A ``llama_cpp.Llama`` whose every token is computed under the mask; an empty one leaves the model as it is.

    Raises InputError (no model file, a mask that it can't have), UnsupportedError (a mask on a dense model),
    DeviceError (no memory, a back end that fails).
    """
    llama_cpp = llama_cpp_python()
    with (
        _captured_log(llama_cpp) as log,
        contextlib.closing(_load(llama_cpp, path, options, log)) as llama,
    ):
        llama._n_ctx = min(llama._n_ctx, llama._model.n_ctx_train() or llama._n_ctx)
        llama.shown = chat_template(llama, options.chat)
        llama.chat_handler = chat_handler(llama_cpp, llama, llama.shown)
        attachment = _attach(llama, path, mask) if mask else None
        try:
            yield llama
        finally:
            del attachment  # before the context goes


def _load(llama_cpp: Any, path: Path, options: LoadOptions, log: list[str]) -> Any:
    threads = options.n_threads or available_cores()
    kv_type = getattr(llama_cpp, f"GGML_TYPE_{options.kv_type.upper()}")
    try:
        return llama_cpp.Llama(
            str(path),
            n_gpu_layers=options.n_gpu_layers,
            use_mmap=options.mmap,
            n_ctx=options.n_ctx,
            n_batch=options.n_ubatch,
            n_ubatch=options.n_ubatch,
            n_threads=threads,
            n_threads_batch=threads,
            flash_attn=options.flash_attn is not False,
            type_k=kv_type,
            type_v=kv_type,
            logits_all=options.logprobs,
            verbose=False,
        )
    except (ValueError, RuntimeError) as error:
        reason = log[0].strip() if log else str(error)
        if str(error).startswith("Failed to create"):
            raise DeviceError(
                f"{path}: no context of {options.n_ctx} tokens could be made: {reason}"
            ) from error
        raise InputError(f"{path}: not a model that can be loaded: {reason}") from error


@contextlib.contextmanager
def _captured_log(llama_cpp: Any) -> Iterator[list[str]]:
    """llama.cpp's error lines, the first ones of a failure first, instead of on the terminal."""
    lines: list[str] = []

    def record(level: int, text: bytes, _: object) -> None:
        if level == LOG_LEVEL_ERROR and len(lines) < KEPT_LINES:
            lines.append(text.decode("utf-8", "replace"))

    keep = llama_cpp.llama_log_callback(record)
    llama_cpp.llama_log_set(keep, None)
    try:
        yield lines
    finally:
        llama_cpp.llama_log_set(llama_cpp._logger.llama_log_callback, None)


def _attach(llama: Any, path: Path, mask: NativeMask) -> Any:
    import ctypes

    address = ctypes.cast(llama.ctx, ctypes.c_void_p).value
    try:
        return library.native().Attachment(address, mask)
    except UnsupportedError as error:
        raise UnsupportedError(f"{path}: {error}") from None


def chat_template(llama: Any, settings: ChatSettings) -> ChatTemplate:
    """The file's chat template as ``Model`` has it."""
    source = llama.metadata.get("tokenizer.chat_template", "")

    def text(token: int) -> str:
        return str(llama._model.token_get_text(token)) if token >= 0 else ""

    special = {name: text(int(token)) for name, token in special_tokens(llama.metadata).items()}
    return ChatTemplate(source, text(llama.token_bos()), text(llama.token_eos()), settings, special)


def chat_handler(llama_cpp: Any, llama: Any, shown: ChatTemplate) -> Callable[..., Any]:
    """Chat completions whose prompts have the tokens that ``Model.encode`` gives: the same text, BOS once."""
    formats = llama_cpp.llama_chat_format
    bos = shown.bos if llama._model.add_bos_token() else ""

    def render(messages: list[dict[str, Any]], **options: Any) -> Any:
        variables = {
            name: options[name] for name in ("tools", "tool_choice") if options.get(name) is not None
        }
        shown.check()
        prompt = shown.render([_message(message) for message in messages], keep_system=True, **variables)
        return formats.ChatFormatterResponse(prompt=prompt, added_special=not bos or prompt.startswith(bos))

    handler: Callable[..., Any] = formats.chat_formatter_to_chat_completion_handler(render)
    return handler


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A request's message; the gate writes a content that is null as an empty one."""
    content = message.get("content")
    if not content and message.get("tool_calls"):
        content = None
    return {**message, "content": content if content is None or isinstance(content, str) else list(content)}
