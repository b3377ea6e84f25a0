"""``sweep``: the effect on the refusal logit of masking each expert alone."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from safex.errors import InputError
from safex.evaluation.trial import AUTO, OnTrial, first_limit
from safex.expert_set import ExpertSet
from safex.experts import Expert, ExpertLike, to_expert
from safex.journal import header_of
from safex.judges import KeywordJudge, settings_of
from safex.prompts import Prompt, PromptSet

from .answers import ANSWER_TOKENS, find_starts, try_starts
from .conclusion import conclude
from .kept import Kept
from .result import Row, Sweep
from .runs import Experts, Floats, Rows, Runs
from .starts import Starts
from .statistics import CORRECTIONS, Means, adjusted, means, p_values, resampled_means, resamples, with_bounds

Progress: TypeAlias = Callable[[str, int, int], None]  # what, done, total

MODES = ("zero", "reroute")  # `force` adds an expert instead of taking one away
MAIN, CONTROL = "regular", "benign"
NEIGHBOURS = 2  # of each expert of an expert set
PAIRS = 8  # experts whose interactions are measured


@dataclass(frozen=True)
class Settings:
    """What was asked for; all of it stands in the result's parameters. Raises InputError for values out of range."""

    mode: str
    gain: float
    pairs: int
    step: float
    seed: int
    bootstrap: int
    correction: str
    alpha: float
    neighbours: int

    def __post_init__(self) -> None:
        """Check the settings."""
        checks = (
            (self.mode in MODES, f"mode is {self.mode!r}, expected one of {', '.join(MODES)}"),
            (np.isfinite(self.gain), f"gain is {self.gain}, expected a finite number"),
            (self.gain == 0 or self.mode == "zero", "gain is of mode zero only; leave it out"),
            (self.pairs == 0 or self.pairs >= 2, f"pairs is {self.pairs}, expected at least 2 experts"),
            (0 < self.step < 1, f"step is {self.step}, expected a change of the gain between 0 and 1"),
            (self.seed >= 0, f"seed is {self.seed}, expected 0 or more"),
            (self.bootstrap >= 1, f"bootstrap is {self.bootstrap}, expected at least 1 resample"),
            (self.correction in CORRECTIONS, f"correction is {self.correction!r}, expected holm or bh"),
            (0 < self.alpha < 1, f"alpha is {self.alpha}, expected a share between 0 and 1"),
            (self.neighbours >= 0, f"neighbours is {self.neighbours}, expected 0 or more"),
        )
        for holds, message in checks:
            if not holds:
                raise InputError(message)


def sweep(
    model: Any,
    experts: ExpertSet | Sequence[ExpertLike] | None = None,
    prompts: PromptSet | None = None,
    *,
    mode: str = "zero",
    gain: float = 0.0,
    pairs: bool | int = False,
    gradient: bool = False,
    step: float = 0.1,
    neighbours: int | None = None,
    starts: Starts | None = None,
    max_new: int | str = AUTO,
    bootstrap: int = 1000,
    correction: str = "holm",
    alpha: float = 0.05,
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    on_trial: OnTrial | None = None,
    judge: KeywordJudge | None = None,
) -> Sweep:
    """The effect of masking each expert alone on the refusal logit at the first tokens of the answer.

    The refusal logit is the natural log of the probability that an answer begins with one of the model's own refusal
    starts, minus that of its compliance starts (``starts``; by default found in its greedy unmasked answers to
    regular and benign prompts of at most ``max_new`` tokens, read by ``judge`` (None: keyword); "auto": 48, or more
    where a few trial answers can't be read with so many, of which ``on_trial`` hears). An expert's effect on a set is
    the mean over prompts of (masked - unmasked), with a 95 % paired bootstrap interval; its p-value (paired t-test,
    regular prompts) is adjusted for the number of experts by ``correction``, "holm" or "bh". Its specificity is the
    effect on regular minus that on benign prompts. Prompts that never select an expert have effect 0 and are not run.

    ``experts`` is an expert set (the union of its groups), a list, or None for all; ``neighbours`` adds for each of
    them so many experts of its layer that are nearest in activation on regular prompts (None: 2 for an expert set,
    else 0). ``prompts`` must hold a set "regular" of 2 or more; None means the sets that ship for this model. The mask
    acts on all of the prompt.
    ``pairs`` measures the interaction effect(a, b) - effect(a) - effect(b) among the 8 (or so many as it says) experts
    with the largest effect. ``gradient`` adds the derivative of the logit by the expert's gain at gain 1, a central
    difference with ``step``, and its difference to that of half the step: how far it is from converged. Quantized
    models round activations, which drowns small steps (use 0.1 or more); in F32 0.003 gives four digits.

    With ``output`` what is measured is kept beside it as it comes: a run that was stopped goes on with ``resume`` and
    gives the same file, byte for byte; ``force`` replaces a file or an unfinished run. ``progress(what, done, total)``
    is called while it runs.

    Raises InputError for settings out of range, experts that the model lacks, prompts without a usable set, a model
    that gives no refusals or no compliant answers, and an unfinished run that differs (by name); DiskError.

    >>> import safex
    >>> with safex.Model("demo-planted", n_threads=1) as model:
    ...     found = sweep(model, ["1:18", "1:19"], bootstrap=100)
    >>> found.experts[0]
    Expert(layer=1, expert=18)
    """
    n_pairs = PAIRS if pairs is True else int(pairs)
    if neighbours is None:
        neighbours = NEIGHBOURS if isinstance(experts, ExpertSet) else 0
    settings = Settings(
        mode, float(gain), n_pairs, float(step), int(seed), bootstrap, correction, alpha, neighbours
    )
    prompts = _shipped(model) if prompts is None else prompts
    _check_sets(prompts)
    listed = _listed(model, experts)
    if resume and output is not None:
        model.use_date_of(header_of(output))
    encoded = [model.encode(prompt) for prompt in prompts]
    n_more = max(map(len, starts.chains)) if starts else first_limit(max_new, ANSWER_TOKENS)
    model.check_lengths(encoded, prompts, n_more)
    hear: Progress = progress or (lambda what, done, total: None)
    reader = judge or KeywordJudge()
    header = _header(model, prompts, listed, settings, gradient, starts) | {"max_new": max_new}
    header |= {} if reader.name == "keyword" else {"judge": reader.name}
    trial = None
    with Kept(output, header, resume, force) as kept:
        asked = PromptSet(prompt for prompt in prompts if prompt.set in (MAIN, CONTROL))
        if starts is None:
            trial = try_starts(model, asked, max_new, kept, hear, on_trial)
            starts = find_starts(model, asked, trial.max_new, kept, hear, reader)
        runs = Runs(model, [item.tokens for item in encoded], starts, kept, hear)
        study = _Study(model, prompts, runs, settings)
        added = study.neighbours_of(listed)
        swept = study.sweep([*listed, *added], set(added), gradient)
        result = _result(model, prompts, starts, study, swept)
        if trial:
            result.parameters |= {"max_new": trial.max_new, "trial": trial.to_json()} | settings_of([reader])
        if output is not None:
            result.save(output)
            kept.finish()
    return result


def _header(
    model: Any,
    prompts: PromptSet,
    listed: Sequence[Expert],
    settings: Settings,
    gradient: bool,
    starts: Starts | None,
) -> dict[str, Any]:
    """What must be the same in a run that goes on; the starts that it found are among what is kept."""
    return {
        **model.provenance(),
        **vars(settings),
        "gradient": bool(gradient),
        "prompts_hash": prompts.hash,
        "experts": [str(expert) for expert in listed],
        "starts": starts.to_json(model) if starts else "found in the answers",
    }


def _shipped(model: Any) -> PromptSet:
    from safex.model_file import is_demo

    return PromptSet.bundled("demo") if is_demo(model.path) else PromptSet.default()


def _check_sets(prompts: PromptSet) -> None:
    n = prompts.sets.count(MAIN)
    if n < 2:
        raise InputError(
            f"the prompts hold {n} of set {MAIN!r}, expected at least 2: effects are means over them "
            f"(sets found: {', '.join(dict.fromkeys(prompts.sets)) or 'none'})"
        )


def _listed(model: Any, experts: ExpertSet | Sequence[ExpertLike] | None) -> list[Expert]:
    if experts is None:
        return [Expert(layer, number) for layer in model.layers for number in range(model.n_experts)]
    if isinstance(experts, str):
        raise InputError(f"experts is the text {experts!r}, expected a list such as [{experts!r}]")
    if isinstance(experts, ExpertSet):
        experts.check_model(model.layers, model.n_experts, "the model")
        listed = list(dict.fromkeys(itertools.chain.from_iterable(experts.groups.values())))
    else:
        listed = list(dict.fromkeys(map(to_expert, experts)))
        entries = [{"layer": layer, "expert": number} for layer, number in listed]
        ExpertSet({"experts": entries}).check_model(model.layers, model.n_experts, "the model")
    if not listed:
        raise InputError("there are no experts to sweep: the list is empty")
    return listed


class _Study:
    """One sweep: its prompts by set, its runs, its resamples."""

    def __init__(self, model: Any, prompts: Sequence[Prompt], runs: Runs, settings: Settings) -> None:
        self.runs, self.settings = runs, settings
        self._layers, self._n_experts = list(model.layers), model.n_experts
        names = np.array([prompt.set for prompt in prompts])
        self.sets: dict[str, Rows] = {
            name: np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())
        }
        self._drawn = resamples(prompts, settings.bootstrap, np.random.default_rng(settings.seed))

    def drawn(self, name: str) -> npt.NDArray[np.uint16]:
        """The resamples of a set's prompts."""
        return self._drawn[:, self.sets[name]]

    def baseline(self) -> dict[str, Row]:
        """The unmasked refusal logit of each set."""
        made = {}
        for name, prompts in self.sets.items():
            of_set = means(self.runs.baseline[prompts][None], self.drawn(name))
            made[name] = {
                "prompts": len(prompts),
                "logit": float(of_set.value[0]),
                "interval": _bounds(of_set, 0),
            }
        return made

    def neighbours_of(self, listed: Sequence[Expert]) -> list[Expert]:
        """For each expert the nearest in activation of its layer that are not listed, nor added already."""
        activation = self.runs.activation[self.sets[MAIN]].mean(axis=0)
        taken, added = set(listed), []
        for expert in listed if self.settings.neighbours else ():
            of_layer = activation[self._layers.index(expert.layer)]
            gaps = np.abs(of_layer - of_layer[expert.expert])
            others = (Expert(expert.layer, int(number)) for number in np.argsort(gaps, kind="stable"))
            new = list(itertools.islice((e for e in others if e not in taken), self.settings.neighbours))
            taken.update(new)
            added += new
        return added

    def sweep(
        self, experts: Sequence[Expert], added: set[Expert], gradient: bool
    ) -> tuple[list[Row], list[Row]]:
        """Rows of experts, the most refusal-lowering first, and rows of pairs."""
        every = np.arange(len(self.runs.baseline))
        masks = [(expert,) for expert in experts]
        deltas = self.deltas(masks, every, "experts masked")
        columns = self._effects(deltas)
        if gradient:
            columns |= self._gradients(masks)
        rows = [
            {**expert._asdict(), "role": "neighbour" if expert in added else "listed", **_row(columns, i)}
            for i, expert in enumerate(experts)
        ]
        for row in rows:
            self._judge(row)
        order = sorted(range(len(rows)), key=lambda i: (rows[i]["effect"][MAIN], experts[i]))
        self.deltas_in_order = deltas[order]
        pairs = self._pairs(experts, deltas[:, self.sets[MAIN]]) if self.settings.pairs else []
        return [rows[i] for i in order], pairs

    def deltas(self, masks: Sequence[Experts], prompts: Rows, what: str) -> Floats:
        """Masked minus unmasked refusal logit [n_masks, len(prompts)]."""
        logits = self.runs.logits(masks, prompts, self.settings.mode, self.settings.gain, what)
        return np.asarray(logits - self.runs.baseline[prompts])

    def _effects(self, deltas: Floats) -> dict[str, Any]:
        by_set = {name: means(deltas[:, rows], self.drawn(name)) for name, rows in self.sets.items()}
        main = deltas[:, self.sets[MAIN]]
        p = p_values(main)
        columns: dict[str, Any] = {
            "effect": {name: of.value for name, of in by_set.items()},
            "interval": by_set,
            "used": self._used(deltas),
            "p_value": p,
            "p_adjusted": adjusted(p, self.settings.correction),
        }
        if CONTROL in self.sets:
            columns["specificity"] = self._specificity(deltas, by_set)
        return columns

    def _used(self, deltas: Floats) -> Floats:
        """Share of the regular prompts that a mask changes at all."""
        return np.asarray((deltas[:, self.sets[MAIN]] != 0).mean(axis=1))

    def _specificity(self, deltas: Floats, by_set: dict[str, Means]) -> Means:
        """Effect on regular minus effect on benign prompts, twins drawn together."""
        resampled = [
            resampled_means(deltas[:, self.sets[name]], self.drawn(name)) for name in (MAIN, CONTROL)
        ]
        return with_bounds(by_set[MAIN].value - by_set[CONTROL].value, resampled[0] - resampled[1])

    def _gradients(self, masks: Sequence[Experts]) -> dict[str, Any]:
        """Central differences of the gain around 1 on regular prompts, and what half the step changes."""
        step = self.settings.step
        full, half = (self._slope(masks, h) for h in (step, step / 2))
        mean = means(full, self.drawn(MAIN))
        return {"gradient": mean, "gradient_change": half.mean(axis=1) - mean.value}

    def _slope(self, masks: Sequence[Experts], step: float) -> Floats:
        sides = [
            self.runs.logits(masks, self.sets[MAIN], "zero", gain, f"gain {gain:g}")
            for gain in (1 + step, 1 - step)
        ]
        return np.asarray((sides[0] - sides[1]) / (2 * step))

    def _judge(self, row: Row) -> None:
        """Whether masking lowers refusal on regular prompts, and there more than on benign ones."""
        row["lowers"] = row["effect"][MAIN] < 0 and row["p_adjusted"] <= self.settings.alpha
        if "specificity" in row:
            row["specific"] = row["lowers"] and row["specificity_interval"][1] < 0

    def _pairs(self, experts: Sequence[Expert], deltas: Floats) -> list[Row]:
        """Interactions on regular prompts among the experts with the largest effect, strongest first."""
        order = np.argsort(-np.abs(deltas.mean(axis=1)), kind="stable")[: self.settings.pairs]
        numbers = list(itertools.combinations(sorted(order.tolist()), 2))
        if not numbers:
            return []
        first, second = np.array(numbers).T
        joint = self.deltas([(experts[a], experts[b]) for a, b in numbers], self.sets[MAIN], "pairs masked")
        extra = joint - deltas[first] - deltas[second]
        p = p_values(extra)
        columns = {
            "effect": joint.mean(axis=1),
            "interaction": means(extra, self.drawn(MAIN)),
            "p_value": p,
            "p_adjusted": adjusted(p, self.settings.correction),
        }
        rows = [
            {"experts": [str(experts[a]), str(experts[b])], **_row(columns, i)}
            for i, (a, b) in enumerate(numbers)
        ]
        return sorted(rows, key=lambda row: -abs(row["interaction"]))


def _row(columns: dict[str, Any], i: int) -> Row:
    """Entry ``i`` of every column: means get an interval beside them."""
    row: Row = {}
    for name, column in columns.items():
        if name == "interval":
            row[name] = {set_: _bounds(of, i) for set_, of in column.items()}
        elif isinstance(column, Means):
            row |= {name: float(column.value[i]), f"{name}_interval": _bounds(column, i)}
        elif isinstance(column, dict):
            row[name] = {set_: float(values[i]) for set_, values in column.items()}
        else:
            row[name] = float(column[i])
    return row


def _bounds(of: Means, i: int) -> list[float]:
    return [float(of.low[i]), float(of.high[i])]


def _result(
    model: Any, prompts: PromptSet, starts: Starts, study: _Study, swept: tuple[list[Row], list[Row]]
) -> Sweep:
    facts = {"layers": model.layers, "n_experts": model.n_experts, "top_k": model.top_k_of_layers}
    provenance = model.provenance()
    parameters = {**vars(study.settings), "prompts_hash": prompts.hash}
    if prompts.notes:
        parameters["prompt_notes"] = list(prompts.notes)
    parameters |= {"computed": study.runs.computed, "skipped": study.runs.skipped}
    made = Sweep(
        rows=swept[0],
        pairs=swept[1],
        baseline=study.baseline(),
        starts=starts.to_json(model),
        model={name.removeprefix("model."): value for name, value in provenance.items()} | facts,
        parameters=parameters,
        deltas=study.deltas_in_order,
    )
    made.conclusion = conclude(made)
    return made
