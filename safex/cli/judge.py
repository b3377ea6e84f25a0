"""``safex-native judge``: verdicts on saved answers, by other judges than those that ran, and where judges differ."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from safex.errors import InputError, SafexError

from .eval_tables import READINGS, agree_words, unread_words
from .options import (
    MODEL_HELP,
    add_model_options,
    add_reading_options,
    model_settings,
    new_file,
    open_model,
    reading_settings,
    show_as_recorded,
)
from .output import Output, table
from .parser import positive
from .progress import Steps, make_steps

if TYPE_CHECKING:
    from rich.table import Table

    from safex.judges import Agreement, Judge
    from safex.responses import Record, Responses

USAGE = "RESPONSES --judge SPEC [--judge SPEC ...] [-o OUT] [options]"
DESCRIPTION = """\
Judge saved answers again: refuse, comply or other. Answers that could not be read (empty, truncated, nothing but
reasoning, degenerate) are counted apart and enter no share.
Verdicts that the file holds already stay, and the disagreement between all its judges is printed. Judges:
  keyword               refusal phrases and checks for content, in English and 17 other languages
  logit                 probability that the model begins with a refusal; needs --model, the model that answered
  gguf:PATH[:TEMPLATE]  a guard model: wildguard, llama-guard-3, harmbench, or a template file (.json)
  openai:MODEL@URL      any OpenAI-compatible endpoint; prompts and answers are sent there. Key: OPENAI_API_KEY"""
EXAMPLE = """\
  safex-native judge demo.responses.jsonl --judge keyword
  safex-native judge run.jsonl --judge gguf:wildguard-Q4_K_M.gguf --judge keyword -o judged.jsonl
  safex-native judge run.jsonl --judge openai:judge@http://127.0.0.1:8000/v1 -o judged.jsonl"""
PIECE = 256  # answers judged between two points from which a failed run keeps its verdicts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("responses", metavar="RESPONSES", help="a file made by `safex-native eval`")
    add("--judge", metavar="SPEC", action="append", required=True, help="a judge; may be repeated")
    add_reading_options(parser)
    add("-o", "--output", metavar="OUT", help="write the answers with all verdicts (default: only print)")
    add("--force", action="store_true", help="replace OUT if it exists")
    add("--model", metavar="MODEL", help=f"for logit: {MODEL_HELP}")
    add(
        "--timeout",
        type=positive,
        default=60,
        metavar="S",
        help="for openai: seconds to wait for a reply (default 60)",
    )
    add(
        "--retries",
        type=positive,
        default=4,
        metavar="N",
        help="for openai: repeats of a failed request (default 4)",
    )
    add("--parallel", type=positive, default=8, metavar="N", help="for openai: requests at once (default 8)")
    add("--no-cache", action="store_true", help="for openai: ask again what was asked before")
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Check what can be checked, judge, write, print."""
    from safex import responses
    from safex.judges import check_spec

    out = Output(args)
    for spec in args.judge:
        check_spec(spec)
    loaded = responses.load(args.responses)
    if not loaded.records:
        raise InputError(f"{args.responses}: holds no answers; run `safex-native eval` on")
    output = None
    if args.output is not None:
        output = new_file(args.output, Path(args.output), args.force, inputs=[args.responses])
    if loaded.torn:
        out.note(f"{args.responses}: its last line is cut short and left out")
    judges = make_judges(args, loaded)
    records = judge_all(args, loaded, judges, output)
    if output:
        responses.save(output, loaded.header, records)
    say_how_they_read(out, judges, records)
    show(out, records, judges, output)
    return 0


def make_judges(args: argparse.Namespace, loaded: Responses) -> list[Judge]:
    """The judges asked for. Raises InputError, also for two of one name."""
    from safex.judges import make

    reading = reading_settings(args)
    judges = [make(spec, **reading, **_options(spec.partition(":")[0], args, loaded)) for spec in args.judge]
    names = [judge.name for judge in judges]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"judge {twice} is asked for twice; leave one out")
    return judges


def _options(kind: str, args: argparse.Namespace, loaded: Responses) -> dict[str, Any]:
    if kind == "logit" and args.model:
        return {"model": _model_that_answered(args, loaded)}
    if kind == "gguf":
        return {"settings": model_settings(args)}
    if kind == "openai":
        limits = {"timeout": float(args.timeout), "max_retries": args.retries, "n_parallel": args.parallel}
        return {"cache": not args.no_cache, **limits}
    return {}


def _model_that_answered(args: argparse.Namespace, loaded: Responses) -> Any:
    show_as_recorded(args, loaded.header.model)
    model = open_model(args, needs_experts=False)
    known = loaded.header.model.get("model.fingerprint", model.fingerprint)
    if known != model.fingerprint:
        raise InputError(
            f"{args.model}: is not the model that gave these answers (fingerprint {known}); name that one"
        )
    shown = loaded.header.model.get("template_hash", model.chat.hash)
    if shown != model.chat.hash:
        raise InputError(
            f"{args.model}: would be shown other prompts than when it gave these answers (template_hash {shown}): "
            "leave --system, --template-kwargs, --thinking and --date out, which are taken from the file"
        )
    return model


def judge_all(
    args: argparse.Namespace, loaded: Responses, judges: Sequence[Judge], output: Path | None
) -> list[Record]:
    """All answers with the verdicts of all judges. What a failure left is written to ``output``."""
    records = list(loaded.records)
    with make_steps(args.quiet) as steps:
        for judge in judges:
            done = 0
            try:
                for done in range(0, len(records), PIECE):
                    piece = slice(done, done + PIECE)
                    records[piece] = _judge_piece(judge, records[piece], done, len(records), steps)
            except (SafexError, KeyboardInterrupt) as error:
                _keep(error, loaded, records, output, f"{done} of {len(records)} verdicts of {judge.name}")
    return records


def _judge_piece(judge: Judge, records: list[Record], first: int, total: int, steps: Steps) -> list[Record]:
    what = f"judging by {judge.name}"
    steps.running(what, first, total)
    verdicts = judge.judge(
        [record.item for record in records], lambda done, _: steps.running(what, first + done, total)
    )
    return [record.judged(judge.name, verdict) for record, verdict in zip(records, verdicts, strict=True)]


def _keep(
    error: SafexError | KeyboardInterrupt,
    loaded: Responses,
    records: list[Record],
    output: Path | None,
    what: str,
) -> NoReturn:
    """Write what there is, say so, and raise the error again."""
    from safex import responses

    kept = ""
    if output and records != loaded.records:
        responses.save(output, loaded.header, records)
        kept = f" ({what} are in {output})"
    raise type(error)(f"{str(error) or 'interrupted'}{kept}") from error


# --- what is printed


def say_how_they_read(out: Output, judges: Sequence[Judge], records: Sequence[Record]) -> None:
    """The policy, and how many answers are in languages that the keyword judge does not read."""
    from safex.judges import POLICIES, language_note, settings_of

    if policy := settings_of(judges).get("policy"):
        out.text(f"Policy {policy}: {POLICIES[policy]}")
    for judge in judges:
        details = [record.verdicts[judge.name].get("detail") for record in records]
        if note := language_note(details):
            out.note(f"note: {note}")


def show(out: Output, records: Sequence[Record], judges: Sequence[Judge], output: Path | None) -> None:
    """Counts for each judge, set and mask, and how far the judges agree."""
    from safex.judges import agreements, settings_of

    rows, pairs = count_rows(records), agreements([record.readings for record in records])
    out.text("Verdicts", counts_table(rows))
    if pairs:
        out.text("Disagreement between judges (three-way)", agreement_table(pairs))
    if output:
        out.text(f"Responses with verdicts: {output}")
    out.result(
        {
            "output": str(output) if output else None,
            **settings_of(judges),
            "counts": rows,
            "agreement": [vars(pair) for pair in pairs],
        }
    )


def count_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """For each judge, set and mask: n, readable answers, and the count of each reading and kind of unreadable ones."""
    from safex.judges import THREE, UNREADABLE

    groups: dict[tuple[str, str, str], list[str]] = {}
    for record in records:
        for judge, reading in record.readings.items():
            groups.setdefault((judge, record.set, record.mask), []).append(reading)
    order = list(dict.fromkeys(judge for judge, _, _ in groups))
    return [
        {
            **{"judge": judge, "set": set_, "mask": mask, "n": len(found)},
            "readable": sum(reading in THREE for reading in found),
            **{name: found.count(name) for name in (*THREE, *UNREADABLE)},
        }
        for (judge, set_, mask), found in sorted(groups.items(), key=lambda group: order.index(group[0][0]))
    ]


def counts_table(rows: Sequence[dict[str, Any]]) -> Table:
    """One line a judge, set and mask; shares are of the answers that could be read."""
    body = [
        [row["judge"], row["set"], row["mask"], str(row["n"]), str(row["readable"])]
        + [_count(row, reading) for reading in READINGS]
        + [unread_words(row)]
        for row in rows
    ]
    columns = ["judge", "set", "mask", "n", "read", *READINGS, "not read"]
    return table(columns, body, right=range(3, len(columns) - 1))


def _count(row: dict[str, Any], reading: str) -> str:
    count, readable = row[reading], row["readable"]
    return f"{count} ({count / readable:.0%})" if readable else str(count)


def agreement_table(pairs: Sequence[Agreement]) -> Table:
    """One line a pair of judges, with what they differ in."""
    body = [
        [*pair.judges, str(pair.n), agree_words(pair.agree), _kappa(pair.kappa), _differences(pair)]
        for pair in pairs
    ]
    columns = ["judge", "and judge", "n", "agree", "kappa", "they differ in"]
    return table(columns, body, right=(2, 3, 4))


def _kappa(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def _differences(pair: Agreement) -> str:
    found = [(count, a, b) for a, row in pair.table.items() for b, count in row.items() if a != b and count]
    nothing = "nothing" if pair.n else "neither could read any"
    return ", ".join(f"{a}/{b} {count}" for count, a, b in sorted(found, reverse=True)) or nothing
