"""``Model``: a GGUF model in memory and everything that is run on it."""

from __future__ import annotations

import datetime
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from . import library, model_file
from .chat import ChatTemplate, special_tokens
from .chat_settings import ChatSettings
from .cores import available_cores
from .encoding import Encoded as Encoded
from .encoding import encode_text
from .errors import InputError
from .expert_set import ExpertSet
from .experts import ExpertList, Intervention, MaskLike, NativeMask
from .generation import GREEDY, Sampling, cut_at_stop
from .generation import Response as Response
from .generation import Route as Route
from .placement import placement
from .profile import Profile
from .profiling import Phases, Progress, profile_prompts
from .prompts import Prompt, PromptSet
from .reasoning import formats_of, mark_names, opened_by

if TYPE_CHECKING:
    from .dumping import Dump
    from .features import Features
    from .roster import Roster
    from .token_rows import TokenRows

Tokens: TypeAlias = Sequence[int]
Prompts: TypeAlias = "PromptSet | Sequence[Prompt] | Sequence[str] | Sequence[Tokens]"
Counter: TypeAlias = Callable[[int], None]
NativeCapture: TypeAlias = tuple[list[tuple[int, int]], bool, str, str]  # experts, forced, pool, phase
NativeRequest: TypeAlias = tuple[list[int], int, int, tuple[int, int], int, tuple[float, float, int]]
OnResponse: TypeAlias = Callable[[int, Response], None]

ENDING = 64  # tokens at a prompt's end in which an open block of reasoning shows


class Model:
    """A loaded model. One call runs at a time; calls from other threads wait.

    Parameters
    ----------
    path
        A GGUF file (the first part of a split one), or ``"demo"`` / ``"demo-planted"``.
    n_gpu_layers
        Layers to offload; -1 for all.
    n_threads
        CPU threads; None for all that the process may use.
    n_ctx
        Tokens in the KV cache, all sequences together; the longest prompt plus response.
    n_ubatch
        Tokens computed at once.
    flash_attn
        True, False, or None for upstream's choice. Exact comparisons need False and ``kv_type="f32"``.
    kv_type
        Type of the KV cache: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0.
    mmap
        Map the file instead of reading it.
    tensor_overrides
        ``{regex on tensor names: buffer type}``, e.g. ``{"ffn_.*_exps": "CPU"}`` keeps experts off the GPU.
    n_cpu_moe
        The routed experts of this many layers, from the first on, stay in main memory whatever ``n_gpu_layers``
        says; ``tensor_overrides`` count first.
    on_load
        Called with the loaded share, 0 to 1.
    system
        A system message before every prompt; None for what the chat template does without one.
    template_kwargs
        Variables of the chat template, plain JSON values, e.g. ``{"reasoning_effort": "low"}``.
    thinking
        "on" or "off": sets what the chat template understands of it; ``chat.notes()`` says what.
    date
        The day (a ``date`` or "YYYY-MM-DD") that templates which show one are given; None: today, or the day of the
        run that is resumed.

    Raises
    ------
    InputError
        The file is missing or is no model. ``UnsupportedError``: it routes experts in a way that can't be followed, or
        can't continue a text. ``DeviceError``: no memory, or a back end that fails.

    A dense model has no ``layers`` and 0 ``n_experts``; whatever needs routed experts, masks among it, raises
    UnsupportedError before anything is computed.

    >>> with Model("demo") as model:
    ...     model.layers, model.n_experts, model.top_k
    ([0, 1, 2, 3], 32, 4)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        n_gpu_layers: int = 0,
        n_threads: int | None = None,
        n_ctx: int = 4096,
        n_ubatch: int = 512,
        flash_attn: bool | None = None,
        kv_type: str = "f16",
        mmap: bool = True,
        tensor_overrides: dict[str, str] | None = None,
        n_cpu_moe: int = 0,
        on_load: Callable[[float], None] | None = None,
        system: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        thinking: bool | str | None = None,
        date: datetime.date | str | None = None,
    ) -> None:
        """Load the model; see the class."""
        settings = ChatSettings.of(system, template_kwargs, thinking, date)
        for name, value in (("n_ctx", n_ctx), ("n_ubatch", n_ubatch)):
            if value < 1:
                raise InputError(f"{name} is {value}, expected a positive number of tokens")
        self.path: Path = model_file.resolve(path)
        self.n_threads: int = n_threads or available_cores()
        self.n_gpu_layers: int = n_gpu_layers
        overrides = placement(tensor_overrides, n_cpu_moe)
        self._session: Any = library.native().Session(
            str(self.path),
            n_gpu_layers,
            self.n_threads,
            n_ctx,
            n_ubatch,
            flash_attn,
            kv_type,
            mmap,
            overrides,
            on_load,
        )
        self._lock = threading.Lock()
        self._runs_in: int | None = None  # the thread of the call that runs
        self._default: Intervention | None = None  # of masked()
        self._settings = {"n_ctx": n_ctx, "n_ubatch": n_ubatch, "kv_type": kv_type}
        self._settings["flash_attn"] = "auto" if flash_attn is None else str(flash_attn).lower()
        self.facts: Any = self._session.facts
        self.layers: list[int] = [router.layer for router in self.facts.routers]
        self.top_k_of_layers: list[int] = [router.top_k for router in self.facts.routers]
        self.top_k: int = max(self.top_k_of_layers, default=0)
        self.n_experts: int = self.facts.n_experts
        self.n_ctx: int = min(n_ctx, self._session.n_ctx, self.facts.n_ctx_train or n_ctx)
        self.chat: ChatTemplate = self._chat_template(settings)
        self._marks = {name: ids[0] for name in mark_names() if len(ids := self.tokenize(name)) == 1}
        # Marks that are control tokens, which no text shows, by their id.
        self._hidden_marks = {
            token: name for name, token in self._marks.items() if name not in self.detokenize([token])
        }
        self.fingerprint: str = model_file.fingerprint(self.path)

    def close(self) -> None:
        """Free the model. Using it afterwards raises InputError."""
        with self._lock:
            self._session = None

    def __enter__(self) -> Model:
        """The model itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the model."""
        self.close()

    @property
    def session(self) -> Any:
        """The native session; raises InputError once the model is closed."""
        if self._session is None:
            raise InputError("this model is closed; open it again with safex.Model(...)")
        return self._session

    def require_experts(self) -> None:
        """Raise UnsupportedError where the model is dense: it has nothing to profile or mask."""
        self.session.require_experts()

    # --- text and tokens

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        """Tokens of ``text`` as it stands, no BOS added; with ``special``, names such as ``<|im_end|>`` are tokens."""
        return list(self.session.tokenize(text, special))

    def detokenize(self, tokens: Tokens, special: bool = False) -> str:
        """Text of ``tokens``, with the names of special tokens where ``special``."""
        return str(self.session.detokenize(list(tokens), special))

    def encode(self, prompt: str | Prompt | Tokens) -> Encoded:
        """A prompt as the model is shown it: templated text, or raw token ids as they are.

        The suffix is what follows the user's text: the tokens of the template's ending, at least the last token.
        """
        if not isinstance(prompt, (str, Prompt)):
            return Encoded([int(token) for token in prompt], 1)
        bos = self.facts.bos if self.facts.adds_bos and self.facts.bos >= 0 else None
        return encode_text(self, *self.chat.split(_messages(prompt)), bos)

    def _chat_template(self, settings: ChatSettings) -> ChatTemplate:
        """The file's chat template with its special tokens."""
        tokens = special_tokens(dict(self.facts.metadata))
        special = {name: self._token_text(token) for name, token in tokens.items()}
        bos, eos = map(self._token_text, (self.facts.bos, self.facts.eos))
        return ChatTemplate(self.facts.chat_template, bos, eos, settings, special)

    def _token_text(self, token: int) -> str:
        return self.detokenize([token], special=True) if token >= 0 else ""

    # --- runs

    @contextmanager
    def masked(
        self, experts: ExpertList, mode: str = "zero", gain: float = 0.0, phase: str = "both"
    ) -> Iterator[Model]:
        """Within it, ``generate``, ``score``, ``logits`` and ``route`` use this mask where they are given none.

        An empty list given to them means no mask.

        >>> with Model("demo") as model:
        ...     with model.masked(["0:1"]):
        ...         inside = model.logits([5, 6, 7])
        ...     bool((inside == model.logits([5, 6, 7], ["0:1"])).all())
        True
        """
        before, self._default = self._default, Intervention(experts, mode, gain, phase)
        try:
            if self._default.numbered(1)[0]:
                self.require_experts()
            yield self
        finally:
            self._default = before

    def route(self, tokens: Tokens, mask: MaskLike = None, mode: str = "zero", gain: float = 0.0) -> Route:
        """What the routers do for one raw token list, all of it prompt, under ``mask`` where given."""
        return self._to_route(self._run_prompt(tokens, self._intervention(mask, mode, gain), routes=True))

    def logits(
        self, tokens: Tokens, mask: MaskLike = None, mode: str = "zero", gain: float = 0.0
    ) -> npt.NDArray[np.float32]:
        """Logits float32 [n_tokens, n_vocab] for one raw token list, all of it prompt, under ``mask`` where given."""
        result = self._run_prompt(tokens, self._intervention(mask, mode, gain), logits=True)
        logits: npt.NDArray[np.float32] = result["logits"]
        return logits

    def generate(
        self,
        prompts: Prompts,
        max_new: int = 64,
        mask: MaskLike = None,
        mode: str = "zero",
        gain: float = 0.0,
        *,
        phase: str = "both",
        n_samples: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        routes: bool = False,
        on_tokens: Counter | None = None,
        on_response: OnResponse | None = None,
    ) -> list[Response]:
        """Answers, many at once, templated like ``profile``: prompts in order, the samples of a prompt together.

        ``mask`` is one list of experts for all prompts or one list (or None) for each; ``gain`` is the factor of
        mode ``zero``; ``phase`` says where the mask acts: on the "prompt" (up to the token that the first one of
        the answer follows), the "response", or "both". ``temperature`` 0 is greedy; else ``n_samples`` answers
        a prompt are drawn, of the tokens that reach ``top_p`` together, each with a random stream of its own made
        from ``seed``, the prompt's place and the sample's. ``stop`` are texts that end an answer.

        ``on_response(index, response)`` hears of each answer as it is done, index = prompt * n_samples + sample;
        what it raises ends the run. ``on_tokens`` hears about ten times a second how many tokens were processed.

        Raises, before anything is computed, InputError for settings out of range, a mask that the model can't
        have, and a prompt that with ``max_new`` tokens exceeds the context; UnsupportedError for masks or ``routes``
        where the model is dense.
        """
        sampling = Sampling(n_samples, temperature, top_p, seed, stop)
        encoded = self._encode_all(prompts)
        self.check_lengths(encoded, prompts, max_new)
        masks, which = self._intervention(mask, mode, gain, phase).numbered(len(encoded))
        responses: dict[int, Response] = {}

        def on_result(index: int, result: dict[str, Any]) -> None:
            prompt = encoded[index // sampling.n_samples]
            responses[index] = self._to_response(prompt, result, sampling.stops)
            if on_response:
                on_response(index, responses[index])

        requests = [
            _request(item, numbers, max_new, sampling=sampling.of(prompt, sample))
            for prompt, (item, numbers) in enumerate(zip(encoded, which, strict=True))
            for sample in range(sampling.n_samples)
        ]
        self._run(requests, masks, on_result, on_tokens, routes=routes, stop=sampling.stops)
        return [responses[index] for index in range(len(requests))]

    def cut(self, response: Response, n_tokens: int) -> Response:
        """An answer as it would have been with a limit of ``n_tokens``, made from its first tokens.

        >>> with Model("demo") as model:
        ...     (answer,) = model.generate(["How do I bake bread?"])
        ...     model.cut(answer, 3) == model.generate(["How do I bake bread?"], max_new=3)[0]
        True
        """
        if n_tokens >= len(response.tokens):
            return response
        tokens = response.tokens[:n_tokens]
        result = {"generated": tokens, "text": self.detokenize(tokens), "finish": "length"}
        return self._to_response(Encoded(response.prompt_tokens, len(response.prompt_tokens)), result, ())

    def score(
        self,
        prompts: Prompts,
        targets: Sequence[int],
        mask: MaskLike = None,
        mode: str = "zero",
        gain: float = 0.0,
        continuation: Sequence[int] = (),
        *,
        phase: str = "both",
        on_tokens: Counter | None = None,
    ) -> npt.NDArray[np.float32]:
        """Log-probabilities of ``targets`` at the first tokens of the answer: float32 [n_prompts, 1 + C, n_targets].

        They are natural logarithms, normalised over the vocabulary. Row 0 is where the first token of the answer is
        predicted; row i follows the first i tokens of ``continuation``, C tokens that the answer is made to begin
        with. ``mask``, ``mode``, ``gain`` and ``phase`` as in ``generate``; thousands of prompts that differ in their
        mask only are cheap.

        >>> with Model("demo") as model:
        ...     model.score(["How do I bake bread?"], targets=[5, 6, 7]).shape
        (1, 1, 3)
        """
        encoded = self._encode_all(prompts)
        self.check_lengths(encoded, prompts, len(continuation))
        masks, which = self._intervention(mask, mode, gain, phase).numbered(len(encoded))
        forced = [int(token) for token in continuation]
        scores = np.empty((len(encoded), 1 + len(forced), len(targets)), np.float32)

        def on_result(index: int, result: dict[str, Any]) -> None:
            scores[index] = result["scores"]

        requests = [_request(e, numbers, forced=forced) for e, numbers in zip(encoded, which, strict=True)]
        if len(targets):
            self._run(requests, masks, on_result, on_tokens, targets=[int(token) for token in targets])
        return scores

    def profile(
        self,
        prompts: Prompts,
        response: bool = False,
        max_new: int = 64,
        output: str | os.PathLike[str] | None = None,
        resume: bool = False,
        force: bool = False,
        progress: Progress | None = None,
    ) -> Profile:
        """Count which experts are selected, for each prompt, layer and phase.

        ``prompts`` are strings (templated), raw token lists, or a ``PromptSet``. With ``response`` the answers are
        generated too (greedily, at most ``max_new`` tokens) and counted as the phase "response". With ``output``
        each prompt is written as it finishes: a run that was stopped goes on with ``resume=True``, and ``force``
        replaces an existing file. ``progress(prompts done, prompts in all, tokens done)`` is called while it runs.

        Raises, before anything is computed, InputError where a prompt is longer than the context, and
        UnsupportedError where the model is dense.

        >>> with Model("demo") as model:
        ...     model.profile(["How do I bake bread?"]).counts.shape
        (1, 4, 32)
        """
        self.require_experts()
        return profile_prompts(
            self,
            as_prompt_set(prompts),
            prompts,
            max_new if response else 0,
            output=output,
            resume=resume,
            force=force,
            progress=progress,
        )

    def dump(
        self,
        experts: ExpertList | ExpertSet | Roster,
        prompts: Prompts,
        routing: str = "forced",
        pool: str = "mean",
        phase: str = "prompt",
        max_new: int = 64,
        output: str | os.PathLike[str] | None = None,
        resume: bool = False,
        force: bool = False,
        progress: Progress | None = None,
    ) -> Features:
        """Features for ``probe``: outputs of experts, before the gate weight, pooled over each prompt's tokens.

        ``routing`` "forced" sends every token through each expert, beside the model's own routing and without
        disturbing it (what the paper's script does); "natural" takes the tokens that selected the expert, and a
        prompt without any is missing. ``pool``: "mean" or "last" token of ``phase`` ("prompt", "suffix", or
        "response": answers of up to ``max_new`` tokens are generated then). ``experts``: a list, an expert set (its
        groups), or a roster with controls. With ``output`` each prompt is kept as it finishes, as in ``profile``.

        Raises, before anything is computed, InputError for experts that the model lacks, unknown settings and prompts
        that are too long, UnsupportedError for dense models and Llama-4, whose gate weight acts on the input.

        >>> with Model("demo") as model:
        ...     model.dump(["0:1", "3:2"], ["How do I bake bread?"]).of("3:2").shape
        (1, 128)
        """
        dump = self._dump(experts, prompts, routing, pool, phase, max_new, resume, force, progress)
        return dump.features(output)

    def dump_tokens(
        self,
        experts: ExpertList | ExpertSet | Roster,
        prompts: Prompts,
        routing: str = "forced",
        phase: str = "prompt",
        max_new: int = 64,
        output: str | os.PathLike[str] | None = None,
        resume: bool = False,
        force: bool = False,
        progress: Progress | None = None,
    ) -> TokenRows:
        """Outputs of experts at every token of the phase ("natural": those that selected them), as in ``dump``.

        They take 4 * n_embd bytes a token and expert.

        >>> with Model("demo") as model:
        ...     rows = model.dump_tokens(["0:1"], [[5, 6, 7]]).of("0:1")
        >>> rows.values.shape, rows.positions.tolist()
        ((3, 128), [0, 1, 2])
        """
        dump = self._dump(experts, prompts, routing, "none", phase, max_new, resume, force, progress)
        return dump.token_rows(output)

    def _dump(self, experts: ExpertList | ExpertSet | Roster, prompts: Prompts, *settings: Any) -> Dump:
        from .dumping import Dump, as_roster

        self.require_experts()
        roster = as_roster(experts)
        ExpertSet({"experts": [e._asdict() for e in roster.experts]}).check_model(
            self.layers, self.n_experts, "the model"
        )
        return Dump(self, roster, as_prompt_set(prompts), prompts, *settings)

    def stream_captured(
        self,
        encoded: Sequence[Encoded],
        capture: NativeCapture,
        max_new: int,
        on_result: Callable[[int, dict[str, Any]], None],
        on_tokens: Counter,
    ) -> None:
        """Run encoded prompts and hand over what the core captured of each, by its index, as soon as it is done."""
        requests = [_request(item, (0, 0), max_new) for item in encoded]
        self._run(requests, [], on_result, on_tokens, capture=capture)

    def stream_statistics(
        self,
        encoded: Sequence[Encoded],
        max_new: int,
        deliver: Callable[[int, Phases], None],
        on_tokens: Counter,
    ) -> None:
        """Run encoded prompts and hand over each one's statistics, by its index, as soon as it is done."""
        names = ("prompt", "suffix", "response") if max_new else ("prompt", "suffix")

        def on_result(index: int, result: dict[str, Any]) -> None:
            deliver(index, {name: result[name] for name in names})

        requests = [_request(item, (0, 0), max_new) for item in encoded]
        self._run(requests, [], on_result, on_tokens, statistics=True)

    def check_lengths(
        self, encoded: Sequence[Encoded], prompts: Prompts, max_new: int, first: int = 0
    ) -> None:
        """Raise InputError naming the first prompt that the context can't hold with ``max_new`` more tokens."""
        for i, (item, prompt) in enumerate(zip(encoded, prompts, strict=True), start=first):
            name = (
                f"prompt {prompt.id!r} of set {prompt.set!r}" if isinstance(prompt, Prompt) else f"prompt {i}"
            )
            if not item.tokens:
                raise InputError(f"{name} is empty: it has no tokens")
            if len(item.tokens) + max_new > self.n_ctx:
                extra = f" plus {max_new} of the response" if max_new else ""
                trained = self.facts.n_ctx_train == self.n_ctx
                raise InputError(
                    f"{name} is too long: {len(item.tokens)} tokens{extra}, the context holds {self.n_ctx} "
                    f"(the model was trained with {self.facts.n_ctx_train}); "
                    "shorten the prompt" + ("" if trained else ", or raise n_ctx (--ctx)")
                )

    def use_date_of(self, recorded: Mapping[str, Any]) -> None:
        """Show the date of a run that is resumed, unless one was given: ``recorded`` is what it says of itself."""
        self.chat.use_recorded_date(recorded.get("chat.date"))

    def provenance(self) -> dict[str, Any]:
        """What a result file must say about the model and the session that made it."""
        from . import __version__

        return {
            "model.fingerprint": self.fingerprint,
            "model.name": self.facts.name or self.path.stem,
            "model.architecture": self.facts.architecture,
            "model.quant_types": self.quant_type,
            **self.chat.describe(),
            "tool_version": __version__,
            "upstream_id": library.UPSTREAM_ID,
            **{f"session.{name}": value for name, value in self._settings.items()},
        }

    @property
    def reasoning_formats(self) -> list[str]:
        """Names of the reasoning formats whose marks the chat template or the vocabulary holds."""
        return [each.name for each in formats_of(self.facts.chat_template, self._marks)]

    @property
    def quant_type(self) -> str:
        """The file's main quantization, e.g. Q8_0, as its metadata says."""
        from gguf import LlamaFileType

        number = dict(self.facts.metadata).get("general.file_type", "")
        names = {
            str(int(kind)): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType
        }
        return names.get(number, "unknown")

    def _intervention(self, mask: MaskLike, mode: str, gain: float, phase: str = "both") -> Intervention:
        """What was asked for, or what ``masked`` says where nothing was."""
        given = Intervention(mask, mode, gain, phase)
        return self._default if mask is None and self._default is not None else given

    def _encode_all(self, prompts: Prompts) -> list[Encoded]:
        """Every prompt encoded; a text that occurs more than once only once."""
        if isinstance(prompts, str):
            raise InputError("prompts is one text, expected a list: [text]")
        known: dict[str, Encoded] = {}
        encoded = []
        for prompt in prompts:
            if not isinstance(prompt, (str, Prompt)):
                encoded.append(self.encode(prompt))
                continue
            shown = repr(_messages(prompt))  # parts and tool calls can't be hashed
            if shown not in known:
                known[shown] = self.encode(prompt)
            encoded.append(known[shown])
        return encoded

    def _run_prompt(self, tokens: Tokens, intervention: Intervention, **wanted: Any) -> dict[str, Any]:
        """What the core returns for one raw token list."""
        masks, (numbers,) = intervention.numbered(1)
        results: dict[int, dict[str, Any]] = {}
        prompt = Encoded([int(token) for token in tokens], 0)
        self._run([_request(prompt, numbers)], masks, results.__setitem__, **wanted)
        return results[0]

    def _run(
        self,
        requests: list[NativeRequest],
        masks: list[NativeMask],
        on_result: Callable[[int, dict[str, Any]], None],
        on_tokens: Counter | None = None,
        **options: Any,
    ) -> None:
        """Run requests in the core, one call at a time; ``on_result`` gets each one's index and result."""
        if self._runs_in == threading.get_ident():
            raise InputError(
                "this model is running: what it calls back can't run it again; wait for its answers"
            )
        with self._lock:
            self._runs_in = threading.get_ident()
            try:
                self.session.run(requests, masks, on_result, on_tokens, **options)
            finally:
                self._runs_in = None

    def _to_route(self, result: dict[str, Any]) -> Route:
        ids, weights, probs = result["routes"]
        return Route(ids, weights, probs, self.layers)

    def _to_response(self, encoded: Encoded, result: dict[str, Any], stops: Sequence[str]) -> Response:
        tokens, text = list(result["generated"]), result["text"]
        marked = self._marked(encoded, tokens, text, stops)
        route = self._to_route(result) if "routes" in result else None
        return Response(text, tokens, result["finish"], encoded.tokens, route, marked)

    def _marked(self, encoded: Encoded, tokens: Sequence[int], text: str, stops: Sequence[str]) -> str | None:
        """An answer's text with all marks of reasoning: those of its prompt's ending, and control tokens."""
        opening = opened_by(encoded.ending or self.detokenize(encoded.tokens[-ENDING:], special=True))
        if not self._hidden_marks.keys().isdisjoint(tokens):
            runs = itertools.groupby(tokens, key=self._hidden_marks.get)
            shown = (mark * len(list(run)) if mark else self.detokenize(list(run)) for mark, run in runs)
            text = cut_at_stop("".join(shown), stops)
        elif not opening:
            return None
        return f"{opening}\n{text}" if opening else text


def _request(
    prompt: Encoded,
    masks: tuple[int, int],
    max_new: int = 0,
    forced: Sequence[int] = (),
    sampling: tuple[float, float, int] = GREEDY,
) -> NativeRequest:
    """A request as the core takes it: ``masks`` are the numbers of the prompt's and the response's."""
    tokens = [*prompt.tokens, *forced]
    return tokens, prompt.n_suffix, len(forced), masks, max_new, sampling


def as_prompt_set(prompts: Prompts) -> PromptSet:
    """Ids and set names for prompts of any kind; raw token lists stand as their own text."""
    if isinstance(prompts, PromptSet):
        return prompts
    if isinstance(prompts, str):
        raise InputError("prompts is one text, expected a list: [text]")
    ready = [prompt for prompt in prompts if isinstance(prompt, Prompt)]
    plain = [prompt for prompt in prompts if not isinstance(prompt, Prompt)]
    if ready and plain:
        raise InputError("prompts mixes Prompt objects with texts or tokens: make all of them Prompt")
    if ready:
        return PromptSet(ready)
    return PromptSet.of(p if isinstance(p, str) else " ".join(map(str, p)) for p in plain)


def _messages(prompt: str | Prompt) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt.turns()
