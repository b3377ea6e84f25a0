"""``safex-native merge``: adapters added to, or subtracted from, chosen experts of a model file."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safex.errors import InputError

from .edited import in_place, show_files
from .options import MODEL_HELP, input_files, new_file
from .output import Output, size, table
from .parser import finite
from .progress import make_steps

if TYPE_CHECKING:
    from safex.merging.merging import MergeReport

USAGE = "MODEL [ADAPTER] --experts SPEC (-o OUT | --in-place | --dry-run) [options]"
DESCRIPTION = """\
Add LoRA adapters to chosen experts, or subtract them, and write the result into a new model file: only these experts'
slices change, each in its tensor's own type, or in the larger one of --promote. Says how much of the change is left
after quantization. The file says in its metadata and its name what was done to which base; `verify` proves it."""
EXAMPLE = """\
  safex-native merge model.gguf safe-adapter --experts experts.json:ctrl -o safer.gguf
  safex-native merge model.gguf --adapter safe --scale 1 --adapter toxic --scale -0.5 --experts all --dry-run
  safex-native merge model-Q4_K.gguf --base base-BF16.gguf --tuned tuned-BF16.gguf --experts 3:17,4:2 -o tuned.gguf
  safex-native merge model-IQ2_XS.gguf safe-adapter --experts experts.json:ctrl --promote q8_0 -o safer.gguf
  safex-native merge model.gguf safe-adapter --experts experts.json:ctrl --in-place    (`restore` takes it back)"""
SHOWN = 40  # slices in the printed table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("model", metavar="MODEL", help=MODEL_HELP)
    add(
        "first",
        metavar="ADAPTER",
        nargs="?",
        help="a PEFT or mlx-lm directory, or a LoRA of llama.cpp (.gguf)",
    )
    add("--adapter", action="append", default=[], metavar="ADAPTER", help="one more; may be repeated")
    add("--base", metavar="GGUF", help="with --tuned: their difference is one more adapter")
    add("--tuned", metavar="GGUF", help="the model that was trained from --base, of the same quant type")
    add(
        "--scale",
        action="append",
        type=finite,
        metavar="S",
        help="factor of the adapters, in their order: above 0 adds, below 0 subtracts (default 1)",
    )
    add(
        "--experts",
        required=True,
        metavar="SPEC",
        help="FILE (all its groups), FILE:group, L:E,L:E, or the word all",
    )
    add("-o", "--output", metavar="OUT", help="the new file; parts are named from it where MODEL is split")
    add(
        "--in-place", action="store_true", help="change MODEL itself; an undo file beside it serves `restore`"
    )
    add(
        "--dry-run",
        action="store_true",
        help="say what would change and how much would be left; write nothing",
    )
    add("--imatrix", metavar="FILE", help="importance matrix of llama-imatrix (GGUF), for quantized tensors")
    add(
        "--promote",
        metavar="TYPE",
        help="write tensors that change and are smaller in this type, such as q8_0 or f16; makes the file larger",
    )
    add(
        "--min-survival",
        type=finite,
        metavar="C",
        help="refuse to write where the cosine of effective to intended change is below C (default 0.5)",
    )
    add(
        "--b-layout",
        action="append",
        choices=("auto", "interleaved", "blocks"),
        help="lora_B of fused experts: interleaved (PEFT), blocks (Unsloth before September 2026), or auto: as the "
        "adapter tells; once for all adapters, or once for each (default auto)",
    )
    add("--allow-others", action="store_true", help="leave out what an adapter changes besides experts")
    add("--force", action="store_true", help="replace OUT if it exists")


def run(args: argparse.Namespace) -> int:
    """Check the options, merge, report."""
    out = Output(args)
    adapters = adapters_of(args)
    if [args.dry_run, args.in_place, args.output is not None].count(True) != 1:
        raise InputError(
            "give one of -o OUT for a new file, --in-place and --dry-run (see 'safex-native merge --help')"
        )
    try:
        report = (
            in_place(args.model, lambda: merge(args, adapters)) if args.in_place else merge(args, adapters)
        )
    except InputError as error:
        refused = getattr(error, "report", None)
        if refused is not None:
            show(out, refused, args.model)
        raise
    show(out, report, args.model)
    out.result(report.to_json())
    return 0


def adapters_of(args: argparse.Namespace) -> list[Any]:
    """All adapters in the order of their scales: ADAPTER, each --adapter, the pair. Raises InputError."""
    if (args.base is None) != (args.tuned is None):
        raise InputError("--base and --tuned go together: what is merged is their difference")
    adapters = [*([args.first] if args.first else []), *args.adapter]
    adapters += [(args.base, args.tuned)] if args.base else []
    if not adapters:
        raise InputError("no adapter given: name a PEFT directory, a GGUF LoRA, or --base and --tuned")
    if args.scale and len(args.scale) != len(adapters):
        raise InputError(
            f"{len(adapters)} adapters and {len(args.scale)} times --scale: give one for each adapter, or none"
        )
    return adapters


def merge(args: argparse.Namespace, adapters: list[Any]) -> MergeReport:
    """Run it as the options say."""
    from safex.merging.merging import MIN_SURVIVAL
    from safex.merging.merging import merge as run_merge

    inputs = input_files(args.model, None, args.experts, args.imatrix)
    inputs += [str(path) for one in adapters for path in (one if isinstance(one, tuple) else (one,))]
    target = None
    if args.output is not None:
        target = new_file(args.output, Path("merged.gguf"), args.force, inputs)
    with make_steps(args.quiet) as steps:
        return run_merge(
            args.model,
            target,
            adapters,
            args.experts,
            args.scale or 1.0,
            imatrix=args.imatrix,
            promote=args.promote,
            min_survival=MIN_SURVIVAL if args.min_survival is None else args.min_survival,
            allow_others=args.allow_others,
            b_layout=args.b_layout or "auto",
            dry_run=args.dry_run,
            force=args.force,
            on_step=steps.running,
        )


def show(out: Output, report: MergeReport, model: str) -> None:
    """The slices with what is left of their change, the worst first; what was written, and what comes next."""
    rows = sorted(report.survivals, key=lambda one: one.cosine)
    body = [
        [str(one.layer), str(one.expert), one.tensor, f"{one.cosine:.3f}", f"{one.norm_ratio:.3f}"]
        for one in rows[:SHOWN]
    ]
    columns = ["layer", "expert", "tensor", "cosine", "norm ratio"]
    act = "change" if report.paths else "would change"
    out.text(f"{report.provenance.what}: {size(report.n_bytes)} {act}")
    if body:
        out.text(table(columns, body, right=(0, 1, 3, 4)))
    if len(rows) > SHOWN:
        out.text(f"  and {len(rows) - SHOWN} slices that keep more")
    if whole := report.survival:
        out.text(
            f"Left of the change after quantization: cosine {whole.cosine:.3f}, norm {whole.norm_ratio:.3f}"
        )
    _show_reading(out, report)
    if report.unchanged:
        out.note(
            f"note: {len(report.unchanged)} of the experts chosen don't change: {some(report.unchanged)}"
        )
    if promoted := report.provenance.parameters.get("promoted"):
        types = ", ".join(sorted(set(promoted.values())))
        out.text(f"{len(promoted)} tensors in {types}: the model grows by {size(report.growth)}")
    if report.recoding_error:
        out.text(
            f"Their other experts, recoded: relative error of a slice at most {report.recoding_error:.2g}"
        )
    show_files(out, report, model)


def _show_reading(out: Output, report: MergeReport) -> None:
    """How the adapters were read, what of them is left out, and which experts the imatrix has nothing of."""
    for adapter in report.adapters:
        for (layout, why), names in _by_layout(adapter.layouts.items()).items():
            out.text(f"lora_B of {adapter.name} ({', '.join(names)}) read as {layout}: {why}")
        if adapter.left_out:
            out.note(f"note: {adapter.name} changes more, which is left out: {some(adapter.left_out)}")
    if report.unweighed:
        out.note(
            f"note: {len(report.unweighed)} experts are quantized without the imatrix, which has nothing of them: "
            f"{some(report.unweighed)}"
        )


def _by_layout(layouts: Iterable[tuple[str, Any]]) -> dict[Any, list[str]]:
    found: dict[Any, list[str]] = {}
    for name, layout in layouts:
        found.setdefault(layout, []).append(name)
    return found


def some(names: Sequence[object]) -> str:
    """The first eight of many."""
    return ", ".join(map(str, names[:8])) + (" ..." if len(names) > 8 else "")
