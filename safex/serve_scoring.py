"""Completions that echo their prompt, with its log-probabilities, as OpenAI's clients for scoring text expect them.

llama-cpp-python 0.3.36 pairs each echoed token with the scores that follow it where a model has no BOS token, leaves
out a token that ends the answer, and echoes no prompt that is given as tokens. So what is echoed is made here: entry i
of ``token_logprobs`` is the log-probability of token i after all tokens before it, null for the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .serve_gate import TOKENS


class Scoring:
    """A ``llama_cpp.Llama`` in all but its completions."""

    def __init__(self, llama: Any) -> None:
        """Keep the model."""
        self._llama = llama

    def __getattr__(self, name: str) -> Any:
        """All else is the model's own."""
        return getattr(self._llama, name)

    def create_completion(self, prompt: Any, **options: Any) -> Any:
        """A completion without echo; a stream is made by this way."""
        tokens = _tokens(prompt)
        return self._llama.create_completion(prompt if tokens is None else tokens, **options)

    def __call__(self, prompt: str, echo: bool = False, stream: bool = False, **options: Any) -> Any:
        """A completion; ``prompt`` is text, or tokens as the gate writes them."""
        tokens = _tokens(prompt)
        if echo and not stream:
            return self._echoed(prompt, tokens, **options)
        return self._llama(prompt if tokens is None else tokens, stream=stream, **options)

    def _echoed(self, prompt: str, given: list[int] | None, **options: Any) -> dict[str, Any]:
        n_logprobs, limit = options.pop("logprobs", None), options.pop("max_tokens", None)
        if n_logprobs is not None and not self._llama._logits_all:
            raise ValueError("logprobs needs logits_all")
        before = 0 if given is not None else len(self._bos())
        tokens = given if given is not None else self._bos() + self._tokenized(prompt)
        made: list[int] = []
        generate = self._llama.generate

        def noted(*arguments: Any, **more: Any) -> Iterator[int]:
            for token in generate(*arguments, **more):
                made.append(token)
                yield token

        self._llama.generate = noted
        try:
            # 0 means without limit there, and none here: one token is made and dropped
            answer: dict[str, Any] = self._llama(tokens, max_tokens=limit if limit != 0 else 1, **options)
        finally:
            del self._llama.generate
        (choice,) = answer["choices"]
        if limit == 0:
            made, choice["text"], choice["finish_reason"] = [], "", "length"
            answer["usage"]["completion_tokens"], answer["usage"]["total_tokens"] = 0, len(tokens)
        shown = prompt if given is None else self._text(given)
        choice["text"] = shown + choice["text"]
        if n_logprobs is not None:
            choice["logprobs"] = self._logprobs(tokens + made, before, n_logprobs)
        return answer

    def _logprobs(self, tokens: Sequence[int], start: int, n: int) -> dict[str, Any]:
        """OpenAI's lists for the tokens from ``start`` on. Row i of the scores is what follows token i."""
        texts: list[str] = []
        offsets: list[int] = []
        values: list[float | None] = []
        best: list[dict[str, float] | None] = []
        for at in range(start, len(tokens)):
            offsets.append(sum(map(len, texts)))
            texts.append(self._piece(tokens[at]))
            if at == start:
                values.append(None)
                best.append(None)
                continue
            row = self._llama.logits_to_logprobs(self._llama.scores[at - 1])
            value = float(row[tokens[at]])
            values.append(value)
            best.append(self._best(row, n) | {texts[-1]: value})
        return {"tokens": texts, "text_offset": offsets, "token_logprobs": values, "top_logprobs": best}

    def _best(self, row: Any, n: int) -> dict[str, float]:
        """The ``n`` most probable tokens; where two have one text the more probable counts."""
        order = np.argsort(-row, kind="stable")[:n]
        return {self._piece(int(token)): float(row[token]) for token in order[::-1]}

    def _piece(self, token: int) -> str:
        """A token's own text; bytes that are no text by themselves as OpenAI writes them."""
        raw: bytes = self._llama._model.detokenize([token], special=True)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _bos(self) -> list[int]:
        return [self._llama.token_bos()] if self._llama._model.add_bos_token() else []

    def _tokenized(self, prompt: str) -> list[int]:
        found: list[int] = self._llama.tokenize(prompt.encode(), add_bos=False, special=True)
        return found

    def _text(self, tokens: Sequence[int]) -> str:
        raw: bytes = self._llama._model.detokenize(list(tokens), special=True)
        return raw.decode("utf-8", "replace")


def _tokens(prompt: Any) -> list[int] | None:
    """The tokens of a prompt that the gate wrote; None for text."""
    if not isinstance(prompt, str):
        return list(prompt)
    return [int(token) for token in prompt[len(TOKENS) :].split()] if prompt.startswith(TOKENS) else None
