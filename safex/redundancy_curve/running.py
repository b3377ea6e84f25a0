"""``redundancy``: the whole of a redundancy curve."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safex import model_file
from safex import utility as utilities
from safex.control_masks import activation_of
from safex.errors import InputError
from safex.evaluation.answers import Answers, Progress, silent
from safex.evaluation.evaluating import (
    made_judges,
    prompts_for,
    reading_notes,
    utility_notes,
    windows_for,
)
from safex.evaluation.marks import Marks, marks_for
from safex.evaluation.notes import answer_notes
from safex.evaluation.plan import NONE, REGULAR, Settings
from safex.evaluation.trial import AUTO, MaxNew, OnTrial, first_limit, settled
from safex.experts import ExpertList
from safex.judges import REFUSE, Judge, settings_of
from safex.judges.readable import Read
from safex.model import Model, Prompts
from safex.profile import Profile
from safex.responses import header_of

from .conclusion import conclude, evidence
from .counting import count
from .plan import ORDER, Ladder, make_ladder, mask_name
from .result import Redundancy
from .statistics import check_resamples

DRAWS = 20
RESAMPLES = 2000
SHOWN = ("mode", "gain", "phase", "max_new", "seed", "trial")  # of the settings, in the result


def redundancy(
    model: Model,
    experts: ExpertList | None = None,
    prompts: Prompts | None = None,
    *,
    order: str | None = None,
    sizes: Sequence[int | str] | None = None,
    mode: str = "zero",
    gain: float = 0.0,
    phase: str = "both",
    judge: str | Judge = "keyword",
    controls: Sequence[str] | None = None,
    draws: int = DRAWS,
    max_new: MaxNew = AUTO,
    bootstrap: int = RESAMPLES,
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    force: bool = False,
    utility: bool = True,
    text: str | os.PathLike[str] | None = None,
    profile: Profile | None = None,
    comply: Marks | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
    on_trial: OnTrial | None = None,
) -> Redundancy:
    """How refusal falls as more and more experts of a fixed order are masked, against control orders.

    The order is that of ``experts`` ("listed", the default with a list), or by activation, the most selected first
    ("active"); ``experts`` None means all of the model, which have that order only. The first k experts are masked for
    each k of ``sizes``: numbers, or shares of the model's experts such as "5%" (None: 1, 2, 4, 8 ... and the whole
    list; of all experts a quarter). Nothing is chosen by its effect.

    ``prompts`` need a set "regular", on which half-point, area and controls are measured; other sets get their curves
    under the order too. ``controls`` are ``orders.CONTROL_KINDS`` (None: those of ``orders.DEFAULT_KINDS`` with room),
    ``draws`` orders of each drawn kind, 0 for none; ``profile`` gives the activation (None: counted on the regular
    prompts). Answers are greedy, all masks share batches. ``bootstrap`` resamples of the prompts make the intervals.
    ``output``, ``resume``, ``force``, ``utility``, ``text``, ``comply``, ``limit``, ``max_new``, ``on_trial`` and
    ``progress`` as in ``evaluate``.

    Raises InputError before anything is generated as ``evaluate`` does, and for an order or sizes that can't be; before
    anything is masked where no regular prompt is refused: there is nothing to halve.

    >>> import safex
    >>> prompts = safex.PromptSet(list(safex.PromptSet.bundled("demo"))[:4])
    >>> with safex.Model("demo-planted", n_threads=1) as model:
    ...     found = redundancy(model, ["1:18", "3:13"], prompts, draws=0, utility=False)
    >>> found.sizes, found.curve("regular")[0]["n"]
    ([0, 1, 2], 4)
    """
    model.require_experts()
    settings = Settings(mode, gain, phase, first_limit(max_new), seed=seed)
    said, is_demo = progress or silent, model_file.is_demo(model.path)
    if resume and output is not None:
        model.use_date_of(header_of(output).model)
    chosen = prompts_for(prompts, is_demo).limited(limit)
    windows = windows_for(model, text) if utility else None
    (made,) = made_judges(model, [judge])
    ladder = make_ladder(model, chosen, experts, order, sizes, settings, controls, draws, profile)
    check_resamples([prompt.pair for prompt in chosen if prompt.set == REGULAR], bootstrap)
    marks = marks_for(chosen, comply, is_demo)
    n_answers, resumed = sum(1 for _ in ladder.requests()), Path(output) if output and resume else None
    how = {"judges": [made], "marks": marks, "progress": said}
    settings = settings.tried(settled(model, chosen, max_new, n_answers, resumed, on_trial, **how))
    answers = _answers(model, ladder, settings, marks, output, made, (resume, force), said)
    answers.judge([made], said)
    cost = _utility(model, ladder, windows, settings, said) if windows else []
    found = _result(model, ladder, settings, answers, made.name, bootstrap, cost)
    found.parameters |= settings_of([made])
    found.notes += reading_notes(answers, [made])
    return found


def _answers(
    model: Model,
    ladder: Ladder,
    settings: Settings,
    marks: Marks,
    output: str | os.PathLike[str] | None,
    judge: Judge,
    again: tuple[bool, bool],
    progress: Progress,
) -> Answers:
    """Answers to all, those without a mask first. Raises InputError where they refuse nothing or can't be read."""
    path = None if output is None else Path(output)
    first = Answers(model, ladder.unmasked, settings, marks, path)
    first.generate(*again, progress)
    _check_refusals(first, judge)
    answers = Answers(model, ladder, settings, marks, path)
    answers.records = first.records
    answers.generate(resume=True, progress=progress)
    return answers


def _check_refusals(unmasked: Answers, judge: Judge) -> None:
    regular = [record.item for record in unmasked.in_order if record.set == REGULAR]
    readings = [verdict.reading for verdict in judge.judge(regular)]
    read = Read.of(readings)
    if not read.is_most:
        raise InputError(
            f"only {read.readable} of the {read.n} answers to regular prompts could be read ({read.why}), as judge "
            f"{judge.name} reads them: there is no refusal to go by; {read.remedy()}"
        )
    if REFUSE not in readings:
        raise InputError(
            f"the model refuses none of the {read.readable} regular prompts whose answers could be read, as judge "
            f"{judge.name} reads them: there is nothing to halve"
        )


def _utility(
    model: Model,
    ladder: Ladder,
    windows: Sequence[utilities.Window],
    settings: Settings,
    progress: Progress,
) -> list[dict[str, Any]]:
    """The cost on harmless text of each size of the order."""
    found = utilities.measure_utility(
        model,
        {str(size): ladder.order[:size] for size in ladder.sizes},
        windows,
        settings.mode,
        settings.gain,
        settings.seed,
        lambda done, total: progress("utility", done, total),
    )
    return [{"size": int(size), **cost.to_json()} for size, cost in found.items()]


def _result(
    model: Model,
    ladder: Ladder,
    settings: Settings,
    answers: Answers,
    judge: str,
    n_resamples: int,
    cost: list[dict[str, Any]],
) -> Redundancy:
    found = count(answers.in_order, judge, ladder, n_resamples, settings.seed)
    made = Redundancy(
        conclusion="",
        model=model.provenance(),
        parameters=_parameters(ladder, settings, judge, n_resamples),
        experts=list(map(str, ladder.order)),
        sizes=[0, *ladder.sizes],
        activation=[
            activation_of(ladder.order[:size], model.layers, ladder.activity.values)
            for size in (0, *ladder.sizes)
        ],
        **found,
        utility=cost,
        responses=None if answers.output is None else str(answers.output),
        notes=[
            *ladder.prompts.notes,
            *ladder.notes,
            *(utility_notes(settings) if cost else []),
            *answer_notes(answers.in_order, settings.max_new, _sides(ladder)),
        ],
    )
    made.conclusion, made.evidence = conclude(made), evidence(made)
    return made


def _sides(ladder: Ladder) -> dict[str, str]:
    """The masks whose answers get notes, in words: none, and all experts of the order."""
    n = len(ladder.order)
    return {
        NONE: "without a mask",
        mask_name(ORDER, ladder.sizes[-1]): f"with {n} expert{'s' * (n > 1)} masked",
    }


def _parameters(ladder: Ladder, settings: Settings, judge: str, n_resamples: int) -> dict[str, Any]:
    sets = {name: ladder.prompts.sets.count(name) for name in dict.fromkeys(ladder.prompts.sets)}
    return {
        "order": ladder.by,
        **{name: value for name, value in settings.to_json().items() if name in SHOWN},
        "judge": judge,
        "draws": max((len(orders) for orders in ladder.controls.values()), default=0),
        "bootstrap": n_resamples,
        "prompts_hash": ladder.prompts.hash,
        "prompts": sets,
    }
