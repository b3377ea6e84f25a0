"""Train, check and measure the demo models: those that ship in ``safex/data``, and their relatives.

    python scripts/train_demo.py --kind natural --seed 0 -o safex/data/demo.gguf --checkpoint DIR
    python scripts/train_demo.py --arch mixtral --kind planted --seed 1 --stage1 mixtral-1.pt -o mixtral.gguf
    python scripts/train_demo.py --arch deepseek --type f32 -o exact.gguf
    python scripts/train_demo.py --from exact.gguf --type q4_0 -o small.gguf
    python scripts/train_demo.py --from safex/data/demo.gguf --checkpoint DIR
    python scripts/train_demo.py --evaluate safex/data/demo.gguf --draws 100 --json OUT.json
    python scripts/train_demo.py --check safex/data/demo.gguf
    python scripts/train_demo.py --sets safex/data/demo
    python scripts/train_demo.py --pairs DIR

Architectures: qwen3moe (the shipped ones), qwen2moe, deepseek, mixtral, and dense, a control without experts
(``demo/architectures.py``). Kinds: natural (the refusal stage may change all weights), planted (only 12 experts and
their router rows), never (no refusal stage), always (refuses benign requests too). All kinds of an architecture and
seed share stage 1: ``--stage1 FILE`` keeps it.

Needs PyTorch, tokenizers, gguf and jinja2 (and transformers for ``--checkpoint`` and ``--check``). One thread
by default, so that a seed gives the same weights on the same machine and software.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date
from pathlib import Path

import torch
from demo import check, evaluate, files, sets, train
from demo import tokenizer as bpe
from demo.architectures import ARCHITECTURES, DEFAULT, Config
from demo.model import Model
from tokenizers import Tokenizer

DATA = Path(__file__).resolve().parent.parent / "safex" / "data"


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", choices=tuple(ARCHITECTURES), default=DEFAULT)
    parser.add_argument("--kind", choices=train.KINDS, default="natural")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="OUT.gguf", help="train and write the model here"
    )
    parser.add_argument("--type", choices=tuple(files.TYPES), default="q8_0", help="of OUT.gguf's matrices")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="also write an F32 Hugging Face checkpoint"
    )
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="MODEL.gguf", help="write this model again, train nothing"
    )
    parser.add_argument("--stage1", type=Path, metavar="FILE", help="keep stage 1 here, or take it from here")
    parser.add_argument("--evaluate", type=Path, metavar="MODEL.gguf", help="measure a written model")
    parser.add_argument(
        "--against", type=Path, metavar="DIR", help="with --evaluate: compare with an F32 checkpoint"
    )
    parser.add_argument("--draws", type=int, default=20, help="random control masks (default 20)")
    parser.add_argument(
        "--factor", type=int, default=0, help="measure on sets this many times the shipped size"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="with --evaluate: write the numbers here too"
    )
    parser.add_argument(
        "--check", type=Path, metavar="MODEL.gguf", help="compare with transformers and llama.cpp"
    )
    parser.add_argument("--sets", type=Path, metavar="DIR", help="write the prompt files")
    parser.add_argument("--pairs", type=Path, metavar="DIR", help="write data for train_expert_lora.py")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    check_together(parser, args)
    return args


def check_together(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse options that don't go together, before anything is trained."""
    if args.source is not None and args.checkpoint is None and args.output is None:
        parser.error("--from needs --checkpoint DIR, or -o OUT.gguf with --type")
    if args.arch == "dense" and args.kind == "planted":
        parser.error("--kind planted: a dense model has no experts to plant in")
    if args.checkpoint is not None and args.source is None and ARCHITECTURES[args.arch].huggingface is None:
        parser.error(f"--checkpoint: transformers has no class for {ARCHITECTURES[args.arch].title}")


def stage_one(arch: str, seed: int, cache: Path | None) -> tuple[Model, Tokenizer, float]:
    """Train the tokenizer and stage 1, or take stage 1 from ``cache``; all kinds start from the same one."""
    tokenizer = bpe.train(seed)
    model = Model(Config.of(arch, tokenizer.get_vocab_size())).initialise(seed)
    if cache is not None and cache.exists():
        saved = torch.load(cache)
        model.load_state_dict(saved["state"])
        return model, tokenizer, saved["seconds"]
    seconds = train.run_stage(model, tokenizer, train.STAGE_1_BY_ARCH.get(arch, train.STAGE_1), seed)
    if cache is not None:
        torch.save({"state": model.state_dict(), "seconds": seconds}, cache)
    return model, tokenizer, seconds


def make(args: argparse.Namespace) -> None:
    """Train a model of the wanted kind and write its files."""
    model, tokenizer, seconds = stage_one(args.arch, args.seed, args.stage1)
    planted = []
    if args.kind == "planted":
        planted = train.least_used(model, train.usage(model, tokenizer, args.seed + 7))
    stage = train.STAGE_2[args.kind]
    if stage is not None:
        seconds += train.run_stage(model, tokenizer, stage, args.seed + 1, planted or None)
    card = files.Card(args.kind, args.seed, args.arch, seconds, date.today().isoformat(), planted)
    write(args, model, tokenizer, card)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.2f} MB, {seconds:.0f} s of training")


def write(args: argparse.Namespace, model: Model, tokenizer: Tokenizer, card: files.Card) -> None:
    """Write the files that the command line asks for."""
    if args.output is not None:
        files.write_gguf(args.output, model, tokenizer, card, args.type)
        if card.planted:
            files.write_truth(args.output.with_suffix(".truth.json"), args.output, card)
    if args.checkpoint is not None:
        from demo import checkpoint

        checkpoint.write(args.checkpoint, model, tokenizer)


def measure(args: argparse.Namespace) -> None:
    """Print (and write) what a model does on held-out prompts."""
    model, tokenizer, card = files.read_gguf(args.evaluate)
    folder = DATA / "demo"
    wanted = sets.read(folder)
    if args.factor:
        rows = sets.held_out(sets.ROUNDS * args.factor, args.factor)
        wanted = {name: [sets.item_of(line) for line in lines] for name, lines in rows.items()}
    report = evaluate.report(model, tokenizer, wanted, card.planted, args.draws)
    print(f"{card.name}, seed {card.seed}, {card.seconds:.0f} s of training, {card.date}\n\n{report.text()}")
    result = report.as_dict()
    if args.against is not None:
        result["agreement"] = compare(args.against, model, tokenizer, wanted)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def compare(
    folder: Path, model: Model, tokenizer: Tokenizer, wanted: dict[str, list[sets.Item]]
) -> dict[str, tuple[int, int]]:
    """Print how many verdicts of the F32 checkpoint survive in the quantized file."""
    from demo import checkpoint

    exact, _ = checkpoint.read(folder)
    model.mask([])
    found = {}
    for name, items in wanted.items():
        pair = (evaluate.judge(m, tokenizer, items) for m in (exact, model))
        found[name] = evaluate.agreement(*pair)
        print(f"verdicts of the file and of F32 agree on {found[name][0]} of {found[name][1]} {name} prompts")
    return found


def main() -> int:
    """Do what the command line asks; 1 when a check fails."""
    args = arguments()
    torch.set_num_threads(args.threads)
    if args.sets is not None:
        sets.write(args.sets)
    if args.pairs is not None:
        sets.write_pairs(args.pairs)
    if args.source is not None:
        write(args, *files.read_gguf(args.source))
    elif args.output is not None:
        make(args)
    if args.evaluate is not None:
        measure(args)
    return 0 if args.check is None or check.run(args.check, sets.read(DATA / "demo")) else 1


if __name__ == "__main__":
    sys.exit(main())
