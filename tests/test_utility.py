"""Perplexity and divergence against plain NumPy and scipy on tiny models and the demo models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import special

import safex
from safex import InputError, utility
from safex.errors import DeviceError
from safex.experts import Expert
from safex.utility import Window, measure_utility

TRUTH = Path(safex.__file__).parent / "data" / "demo-planted.truth.json"
MASK = [(1, 0), (2, 3), (2, 5), (3, 1)]


@pytest.fixture
def exact(tiny_path: Callable[..., Path]) -> Callable[[str], safex.Model]:
    """As conftest's, with one thread: two of them wait for each other longer than such a model computes."""
    return lambda arch: safex.Model(tiny_path(arch), flash_attn=False, kv_type="f32", n_threads=1)


@pytest.fixture(scope="module")
def demo() -> Iterator[safex.Model]:
    with safex.Model("demo", n_threads=1) as model:
        yield model


def random_windows(seed: int = 0, vocab: int = 288) -> list[Window]:
    rng = np.random.default_rng(seed)
    shapes = [(40, 1), (40, 1), (40, 17), (33, 1), (2, 1), (75, 74)]
    return [Window(rng.integers(0, vocab, size).tolist(), first) for size, first in shapes]


def literal(model: safex.Model, windows: list[Window], mask: Any, **options: Any) -> dict[str, np.ndarray]:
    """Per token, by scipy: KL, both negative log-likelihoods, agreement."""
    rows: dict[str, list[Any]] = {"kl": [], "unmasked": [], "masked": [], "same": []}
    for window in windows:
        plain, changed = model.logits(window.tokens), model.logits(window.tokens, mask, **options)
        for i in range(window.first, len(window.tokens)):
            p, q = (special.softmax(side[i - 1].astype(np.float64)) for side in (plain, changed))
            rows["kl"].append(special.rel_entr(p, q).sum())
            rows["unmasked"].append(-np.log(p[window.tokens[i]]))
            rows["masked"].append(-np.log(q[window.tokens[i]]))
            rows["same"].append(np.argmax(p) == np.argmax(q))
    return {name: np.array(values) for name, values in rows.items()}


@pytest.mark.parametrize("arch", ["qwen3moe", "deepseek2"])
@pytest.mark.parametrize(("mode", "gain"), [("zero", 0.0), ("zero", 0.5), ("reroute", 0.0)])
def test_values_are_those_of_scipy(
    exact: Callable[..., safex.Model], arch: str, mode: str, gain: float
) -> None:
    windows = random_windows()
    with exact(arch) as model:
        found = measure_utility(model, {"mask": MASK}, windows, mode, gain)["mask"]
        expected = literal(model, windows, MASK, mode=mode, gain=gain)
    assert (found.n_tokens, found.n_windows) == (39 + 39 + 23 + 32 + 1 + 1, 6)
    assert expected["kl"].mean() > 1e-5
    assert found.kl.value == pytest.approx(expected["kl"].mean(), rel=1e-9)
    assert found.perplexity.value == pytest.approx(np.exp(expected["unmasked"].mean()), rel=1e-9)
    assert found.masked_perplexity.value == pytest.approx(np.exp(expected["masked"].mean()), rel=1e-9)
    assert found.ratio.value == pytest.approx(found.masked_perplexity.value / found.perplexity.value)
    assert found.agreement.value == pytest.approx(expected["same"].mean())
    for name in ("kl", "perplexity", "masked_perplexity", "ratio", "agreement"):
        estimate = getattr(found, name)
        assert estimate.low <= estimate.value <= estimate.high, name


def test_intervals_are_those_of_resampled_windows(exact: Callable[..., safex.Model]) -> None:
    """Against an own loop over windows, within what 2,000 resamples leave open."""
    rng = np.random.default_rng(1)
    windows = [Window(rng.integers(0, 288, 20).tolist(), 1) for _ in range(30)]
    with exact("qwen3moe") as model:
        found = measure_utility(model, {"mask": MASK}, windows)["mask"]
        expected = literal(model, windows, MASK)
    change = (expected["masked"] - expected["unmasked"]).reshape(30, 19).mean(axis=1)
    draws = np.exp(change[rng.integers(0, 30, (20_000, 30))].mean(axis=1))
    low, high = np.quantile(draws, (0.025, 0.975))
    width = found.ratio.high - found.ratio.low
    assert width == pytest.approx((high - low) * np.sqrt(30 / 29) * 2.045 / 1.96, rel=0.08)  # expanded
    assert found.ratio.low == pytest.approx(low, abs=0.1 * width)
    assert found.ratio.high == pytest.approx(high, abs=0.1 * width)


def test_the_model_diverges_from_itself_by_nothing(exact: Callable[..., safex.Model]) -> None:
    with exact("llama") as model:
        same = measure_utility(model, {"none": [], "gain 1": MASK}, random_windows(), gain=1.0)
    assert same["none"] == same["gain 1"]
    assert same["none"].kl == (0, 0, 0) and same["none"].ratio == (1, 1, 1)
    assert same["none"].agreement.value == 1 and same["none"].agreement.low < 1


def test_several_masks_share_the_unmasked_run(demo: safex.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    run = safex.Model.logits

    def counted(model: safex.Model, tokens: Any, mask: Any = None, *rest: Any) -> Any:
        calls.append(mask)
        return run(model, tokens, mask, *rest)

    monkeypatch.setattr(safex.Model, "logits", counted)
    seen: list[tuple[int, int]] = []
    windows = utility.demo_windows(demo)[:5]
    both = measure_utility(
        demo, {"a": MASK, "b": [(0, 1)]}, windows, progress=lambda *step: seen.append(step)
    )
    assert calls == [None, MASK, [(0, 1)]] * 5 and seen == [(3 * k, 15) for k in range(1, 6)]
    alone = measure_utility(demo, {"b": [(0, 1)]}, windows)
    assert alone["b"] == both["b"]


# --- windows


def test_text_is_cut_without_a_gap(demo: safex.Model) -> None:
    text = utility.benign_text()[:2000] + " <|im_end|> "
    windows = utility.text_windows(demo, text, 50)
    assert {len(window.tokens) for window in windows[:-1]} == {50} and {
        window.first for window in windows
    } == {1}
    tokens = [token for window in windows for token in window.tokens]
    assert demo.detokenize(tokens, special=True) == text
    assert demo.facts.eos not in tokens


def test_bos_opens_every_window(exact: Callable[..., safex.Model], monkeypatch: pytest.MonkeyPatch) -> None:
    class Facts:
        adds_bos, bos = True, 7

    with exact("llama") as model:
        monkeypatch.setattr(model, "facts", Facts)
        monkeypatch.setattr(model, "tokenize", lambda text, special: list(range(100, 119)))
        windows = utility.text_windows(model, "", 10)
        assert [window.tokens for window in windows] == [
            [7, *range(100, 109)],
            [7, *range(109, 118)],
            [7, 118],
        ]


def test_default_windows_speak_the_models_language(
    demo: safex.Model, exact: Callable[..., safex.Model]
) -> None:
    windows = utility.default_windows(demo)
    assert len(windows) == 80
    assert measure_utility(demo, {"none": []}, windows)["none"].perplexity.value < 1.05
    with exact("qwen3moe") as model:
        assert utility.default_windows(model) == utility.text_windows(model, utility.benign_text())


def test_the_benign_text_ships() -> None:
    assert 1400 <= len(utility.benign_text().split()) <= 1700


def test_planted_experts_cost_less_on_benign_answers_than_busy_ones() -> None:
    (planted,) = safex.ExpertSet.load(TRUTH).groups.values()
    with safex.Model("demo-planted", n_threads=1) as model:
        activation = model.profile(safex.PromptSet.bundled("demo").texts[:80]).activation()
        busiest = np.argsort(-activation, axis=1)[:, :3]
        busy = [Expert(layer, int(k)) for layer, row in zip(model.layers, busiest, strict=True) for k in row]
        found = measure_utility(model, {"planted": planted, "busy": busy})
    assert found["planted"].kl.value < found["busy"].kl.value
    assert found["planted"].ratio.high < found["busy"].ratio.low


# --- bad input


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ([], "gives 0 windows, intervals need at least 2: take a longer text"),
        ([Window([1, 2], 1)], "gives 1 window, "),
        ([Window([1, 2], 1), Window([1], 1)], "window 1 of 1 tokens predicts none"),
        ([Window([1, 2], 0), Window([1, 2], 1)], "window 0 of 2 tokens predicts none from number 0"),
        ([Window([1, 2], 1), Window([1] * 600, 1)], "window 1 has 600 tokens, the context holds 512"),
    ],
)
def test_unusable_windows_are_refused_first(demo: safex.Model, windows: list[Window], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        measure_utility(demo, {"mask": MASK}, windows)
    assert "\n" not in str(error.value)


def test_unusable_texts(demo: safex.Model, tmp_path: Path) -> None:
    files = {"missing": None, "empty": b" \n", "binary": b"ab\xff\xfe"}
    messages = {"missing": "no such file", "empty": "is empty", "binary": r"no UTF-8 text \(byte 2\)"}
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=messages[name]):
            utility.read_text(tmp_path / name)
    with pytest.raises(InputError, match="can't be read"):
        utility.read_text(tmp_path)
    with pytest.raises(InputError, match="1 tokens predicts nothing"):
        utility.text_windows(demo, "text", 1)


def test_logits_that_are_no_numbers_are_an_error(demo: safex.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "logits", lambda tokens, *rest: np.full((len(tokens), 5), np.nan, np.float32))
    with pytest.raises(DeviceError, match="window 0: the model's logits without a mask are no numbers"):
        measure_utility(demo, {"mask": MASK}, [Window([1, 2], 1)] * 2)
