"""One prompt and its answer as the official SAFEx trace: a JSON object that scripts written for it can read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .chat_settings import CHAT_KEYS

if TYPE_CHECKING:
    from .model import Counter, Model


def trace(
    model: Model, prompt: str, max_new: int = 128, raw: bool = False, on_tokens: Counter | None = None
) -> dict[str, Any]:
    """Run a prompt, answer it greedily, and say which experts both went through.

    The keys are those of the official tool (github.com/Bearisbug/SAFEx): ``model`` (path), ``prompt`` (as given),
    ``input_tokens`` and ``output_tokens`` (ids), ``output_text``, ``num_layers`` L, ``num_experts`` E, ``top_k``;
    ``input_expert_usage`` and ``output_expert_usage`` [L][E], whole numbers: tokens that selected the expert;
    ``input_avg_probs`` and ``output_avg_probs`` [L][E]: mean gate probability (before top-k renormalisation) over
    just these tokens, 0 where there are none.

    L counts all blocks, and row N is block N, so that ``layer`` means the same as everywhere in safex; the row of a
    dense block holds zeros. (The official tool has L rows too but fills them from the first on, so that leading
    dense blocks shift them.) E counts routed experts; shared ones, which every token takes, are left out.
    ``output_tokens`` are the generated ids, all of them counted, the end-of-answer token not among them.

    What the model was shown besides, where it was set or counts, stands under the keys that result files have for it
    (``chat.system``, ``chat.template_kwargs``, ``chat.thinking``, ``chat.date``).

    With ``raw`` the text is not put into the chat template, as in the official tool. ``on_tokens`` hears how many
    tokens were processed. Raises InputError for a prompt that with its answer exceeds the context.

    >>> from safex import Model
    >>> with Model("demo") as model:
    ...     result = trace(model, "How do I bake bread?", max_new=4)
    >>> sum(result["input_expert_usage"][0]) == result["top_k"] * len(result["input_tokens"])
    True
    """
    inputs: Any = [_raw_tokens(model, prompt)] if raw else [prompt]
    (response,) = model.generate(inputs, max_new=max_new, routes=True, on_tokens=on_tokens)
    route = response.route
    assert route is not None
    n_input = len(response.prompt_tokens)
    usage_in, probs_in = _count(model, route.ids[:, :n_input], route.probs[:, :n_input])
    usage_out, probs_out = _count(model, route.ids[:, n_input:], route.probs[:, n_input:])
    shown = {key: value for key, value in model.chat.describe().items() if key in CHAT_KEYS}
    return {
        "model": str(model.path),
        "prompt": prompt,
        "input_tokens": response.prompt_tokens,
        "output_text": response.text,
        "output_tokens": response.tokens,
        "num_layers": model.facts.n_blocks,
        "num_experts": model.n_experts,
        "top_k": model.top_k,
        "input_expert_usage": usage_in,
        "input_avg_probs": probs_in,
        "output_expert_usage": usage_out,
        "output_avg_probs": probs_out,
        **({} if raw else shown),
    }


def _raw_tokens(model: Model, text: str) -> list[int]:
    """The text's tokens, after BOS where the model wants one."""
    tokens = model.tokenize(text)
    wants_bos = model.facts.adds_bos and model.facts.bos >= 0 and tokens[:1] != [model.facts.bos]
    return [model.facts.bos, *tokens] if wants_bos else tokens


def _count(
    model: Model, ids: npt.NDArray[np.int32], probs: npt.NDArray[np.float32]
) -> tuple[list[list[int]], list[list[float]]]:
    """Selections and mean probability [n_blocks][n_experts] of routes [n_layers, n_tokens, top_k]."""
    counts = np.zeros((model.facts.n_blocks, model.n_experts), np.int64)
    sums = np.zeros(counts.shape)
    for row, block in enumerate(model.layers):
        chosen = ids[row] >= 0  # -1 pads layers of a smaller top-k
        np.add.at(counts[block], ids[row][chosen], 1)
        np.add.at(sums[block], ids[row][chosen], probs[row][chosen].astype(np.float64))
    means = np.divide(sums, counts, out=np.zeros(counts.shape), where=counts > 0)
    return counts.tolist(), means.tolist()
