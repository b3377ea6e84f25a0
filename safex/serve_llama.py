"""llama-cpp-python driving our patched library, with a mask on the context that it makes."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

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
PIECE_BYTES = 64  # of a token's text; few are longer


@dataclass(frozen=True)
class LoadOptions:
    """How llama-cpp-python loads the model; as in ``safex.Model``. ``logprobs``: keep the logits of every token.

    ``overrides``: regular expressions on tensor names, each with a buffer type (see ``placement``).
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
    overrides: tuple[tuple[str, str], ...] = ()
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
        llama._model.detokenize = functools.partial(_detokenized, llama_cpp, llama._model)
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
        with _placed(llama_cpp.llama_cpp, options.overrides):
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
def _placed(bindings: Any, overrides: Sequence[tuple[str, str]]) -> Iterator[None]:
    """Models that are loaded meanwhile have their tensors where ``overrides`` say.

    llama-cpp-python offers no argument for it, but starts from llama.cpp's default parameters, which hold a list of
    overrides that ends with an empty one. Raises InputError for a buffer type that isn't there.
    """

    class Override(ctypes.Structure):
        _fields_: ClassVar = [("pattern", ctypes.c_char_p), ("buffer", ctypes.c_void_p)]

    entries = [Override(name.encode(), _buffer_type(bindings._lib, buffer)) for name, buffer in overrides]
    listed = (Override * (len(entries) + 1))(*entries, Override(None, None))
    defaults = bindings.llama_model_default_params

    def with_overrides() -> Any:
        params = defaults()
        params.tensor_buft_overrides = ctypes.cast(listed, ctypes.c_void_p).value
        return params

    bindings.llama_model_default_params = with_overrides if overrides else defaults
    try:
        yield
    finally:
        bindings.llama_model_default_params = defaults


def _buffer_type(library: Any, name: str) -> int:
    """The address of ggml's buffer type of a name. Raises InputError, with the names that this machine has."""
    calls = {
        "ggml_backend_dev_count": (ctypes.c_size_t, ()),
        "ggml_backend_dev_get": (ctypes.c_void_p, (ctypes.c_size_t,)),
        "ggml_backend_dev_buffer_type": (ctypes.c_void_p, (ctypes.c_void_p,)),
        "ggml_backend_buft_name": (ctypes.c_char_p, (ctypes.c_void_p,)),
    }
    for call, (result, arguments) in calls.items():
        getattr(library, call).restype, getattr(library, call).argtypes = result, arguments
    known: dict[str, int] = {}
    for number in range(library.ggml_backend_dev_count()):
        found = library.ggml_backend_dev_buffer_type(library.ggml_backend_dev_get(number))
        if found:
            known.setdefault(library.ggml_backend_buft_name(found).decode(), found)
    if name not in known:
        raise InputError(f"tensor override: no buffer type {name!r}; this machine has {', '.join(known)}")
    return known[name]


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


def _detokenized(llama_cpp: Any, model: Any, tokens: Sequence[int], special: bool = False) -> bytes:
    """The text of tokens of any length; llama-cpp-python's own takes the first 32 bytes of each, or fewer."""
    pieces = []
    for token in tokens:
        size = PIECE_BYTES
        while True:
            piece = ctypes.create_string_buffer(size)
            found = llama_cpp.llama_token_to_piece(model.vocab, token, piece, size, 0, special)
            if found >= 0:
                break
            size = -found
        pieces.append(piece.raw[:found])
    text = b"".join(pieces)
    starts = bool(tokens) and tokens[0] == model.token_bos()
    return text[1:] if starts and text.startswith(b" ") else text


def _attach(llama: Any, path: Path, mask: NativeMask) -> Any:
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
