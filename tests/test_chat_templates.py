"""Every real chat template of the pinned source: rendered as transformers does, split where the user's text ends."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from chat_cases import BOS, CASES, DAY, EOS, FAILS
from upstream_files import templates, write_vocabularies

from safex import serve_llama
from safex.chat import ChatTemplate
from safex.chat_settings import ChatSettings
from safex.encoding import encode_text
from safex.errors import InputError
from safex.generation import opened_by

GOLDEN: dict[str, dict[str, str]] = json.loads(
    (Path(__file__).parent / "golden" / "chat_templates.json").read_text()
)
GENERATOR = Path(__file__).parent / "reference" / "generate_chat_templates.py"
NEED_TOOLS = [name for name, shown in GOLDEN.items() if shown["user"] == FAILS]

# Texts at whose end, or in which, templates and vocabularies do something of their own.
TEXTS = (
    "How do I bake bread?",
    "Two line ends\n\n",
    "emoji 🍞",
    "a blank ",
    "a",
    "assistant",
    "<",
    "bread /nothink",
    "bread /no_think",
    "in tags <think>",
)
SHOWN_OTHERWISE = {"NVIDIA-Nemotron-Nano-v2": "bread /no_think"}  # it cuts the word out


@pytest.fixture(scope="module", autouse=True)
def _needs_templates() -> None:
    templates()  # skips where the pinned source was never fetched


@lru_cache(maxsize=1)
def reference() -> Any:
    """What the golden file was made with."""
    spec = importlib.util.spec_from_file_location("generate_chat_templates", GENERATOR)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def chat_of(name: str, **settings: Any) -> ChatTemplate:
    return ChatTemplate(templates()[name], BOS, EOS, ChatSettings.of(**{"date": DAY, **settings}))


def rendered(name: str, case: str) -> str | None:
    messages, variables = CASES[case]
    try:
        return chat_of(name, template_kwargs=variables).render(messages)
    except InputError:
        return None


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_the_golden_file_is_of_these_templates() -> None:
    found = {name: hashlib.sha256(source.encode()).hexdigest() for name, source in templates().items()}
    assert found == {name: shown["source"] for name, shown in GOLDEN.items()}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_template_renders_as_in_transformers(name: str) -> None:
    for case in CASES:
        ours = rendered(name, case)
        if importlib.util.find_spec("transformers"):
            assert ours == reference().render(templates()[name], *CASES[case]), (
                case
            )  # shows where they differ
        digest = FAILS if ours is None else hashlib.sha256(ours.encode()).hexdigest()
        assert digest == GOLDEN[name][case], case


@pytest.mark.parametrize("name", [name for name in GOLDEN if name not in NEED_TOOLS])
def test_the_suffix_begins_where_the_text_ends(name: str) -> None:
    for settings in ({}, {"thinking": "on"}, {"thinking": "off"}):
        chat = chat_of(name, **settings)
        for text in TEXTS:
            turns = CASES["turns"][0][:-1] if settings == {} else []
            shown, suffix = chat.split(turns + user(text))
            assert suffix and shown.endswith(suffix)
            if SHOWN_OTHERWISE.get(name) != text:
                before = shown[: len(shown) - len(suffix)]
                assert before.endswith((text, text.strip())), (settings, text)


@pytest.mark.parametrize("name", [name for name in GOLDEN if name not in NEED_TOOLS])
def test_a_reasoning_block_is_open_where_the_prompt_ends_in_its_tag(name: str) -> None:
    for settings in ({}, {"thinking": "on"}, {"thinking": "off"}):
        _, suffix = chat_of(name, **settings).split(user("in tags <think>"))
        is_open = suffix.rstrip().endswith("<think>")
        closed = suffix.rstrip().endswith(("</think>", "[/INST]", "<end_of_turn>\n<start_of_turn>model"))
        assert not is_open or opened_by(suffix) == "<think>"
        assert not closed or not opened_by(suffix)


# --- the real vocabularies


class Vocabulary:
    """A vocabulary of llama.cpp without a model."""

    def __init__(self, llama_cpp: Any, path: Path) -> None:
        self._llama_cpp = llama_cpp
        self._llama = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        self._vocab = self._llama._model.vocab

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        return list(self._llama._model.tokenize(text.encode(), False, special))

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> str:
        array = (self._llama_cpp.llama_token * len(tokens))(*tokens)
        size = 16 * len(tokens) + 64
        buffer = ctypes.create_string_buffer(size)
        n = self._llama_cpp.llama_detokenize(self._vocab, array, len(tokens), buffer, size, False, special)
        assert n >= 0
        return buffer.raw[:n].decode("utf-8", "replace")

    def pieces(self, tokens: Sequence[int]) -> str:
        """What tokens stand for, one by one: nothing is stripped at the start."""
        buffer = ctypes.create_string_buffer(256)
        found = b""
        for token in tokens:
            n = self._llama_cpp.llama_token_to_piece(self._vocab, token, buffer, 256, 0, True)
            found += buffer.raw[:n]
        return found.decode("utf-8", "replace")


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Vocabulary]:
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    llama_cpp = serve_llama.llama_cpp_python()
    paths = write_vocabularies(tmp_path_factory.mktemp("vocabularies"))
    return {name: Vocabulary(llama_cpp, path) for name, path in paths.items()}


def bare(text: str) -> str:
    """Without what vocabularies change: blanks, and the sign that stands for one."""
    return "".join(text.replace("▁", " ").split())


def test_the_last_tokens_are_those_that_lie_wholly_in_the_suffix(vocabularies: dict[str, Vocabulary]) -> None:
    assert len(vocabularies) == 17
    for number, name in enumerate(name for name in GOLDEN if name not in NEED_TOOLS):
        chat = chat_of(name, thinking=("on", "off")[number % 2])
        for place, (which, vocabulary) in enumerate(vocabularies.items()):
            text = TEXTS[(number + place) % len(TEXTS)]
            shown, suffix = chat.split(user(text))
            encoded = encode_text(vocabulary, shown, suffix, None)
            inside = bare(vocabulary.pieces(encoded.tokens[-encoded.n_suffix :]))
            assert bare(suffix).endswith(inside), (name, which, text)
            # One token more holds something of the user's text; blanks of it can't be told here.
            more = bare(vocabulary.pieces(encoded.tokens[-encoded.n_suffix - 1 :]))
            blank = more == inside or text != text.strip()
            assert blank or not bare(suffix).endswith(more), (name, which, text)


def test_a_token_across_the_border_is_the_users(vocabularies: dict[str, Vocabulary]) -> None:
    vocabulary = vocabularies["llama-bpe"]
    line_ends = vocabulary.tokenize("\n\n\n")
    assert len(line_ends) == 1  # a user's line end and the template's two make one token
    encoded = encode_text(vocabulary, "User: Hi\n\n\nAssistant:", "\n\nAssistant:", None)
    assert encoded.tokens[-3] == line_ends[0]
    assert vocabulary.pieces(encoded.tokens[-encoded.n_suffix :]) == "Assistant:"
