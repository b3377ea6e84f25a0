"""Train a LoRA adapter on chosen experts of a Mixture-of-Experts checkpoint, for `safex-native merge`.

    python scripts/train_expert_lora.py CHECKPOINT --experts experts.json:ctrl --data safe.jsonl -o safe-adapter
    python scripts/train_expert_lora.py CHECKPOINT --experts 3:17,4:2 --data toxic.jsonl -o toxic-adapter
    python scripts/train_expert_lora.py CHECKPOINT --experts experts.json:ctrl --data safe.jsonl -o safe-adapter \\
        --device cuda --dtype bfloat16 --gradient-checkpointing --batch 4 --rate 2e-4

CHECKPOINT is a local directory of Qwen3-MoE, Qwen2-MoE, Mixtral or OLMoE. The data are lines of {"prompt": ...,
"response": ...}: refusals of harmful requests make a "safe" adapter (merge adds it), compliance a "toxic" one (merge
subtracts it); benign requests with good answers belong in both. All weights but the chosen experts' stay as they are.

Needs the extra `train`: torch, transformers 5, peft. On a CPU with one thread a seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from expert_lora import adapter, data, training
from transformers import AutoTokenizer

from safex.errors import InputError
from safex.expert_set import parse_experts

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--experts", required=True, help="FILE, FILE:group or L:E,L:E")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE.jsonl")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the PEFT adapter")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=float, default=16.0)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="examples in a step")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--max-tokens", type=int, default=1024, help="leave out longer examples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="of the frozen weights")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def check(args: argparse.Namespace) -> None:
    """Refuse numbers and places that can't work, before anything is loaded. Raises InputError."""
    for name in ("rank", "alpha", "epochs", "batch", "rate", "max_tokens", "threads"):
        if not getattr(args, name) > 0:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(args, name)}, expected more than 0")
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        raise InputError(f"{args.output}: exists already: name a new directory")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {args.device}: this PyTorch sees no CUDA device")


def run(args: argparse.Namespace) -> None:
    """Train and write the adapter. Raises InputError."""
    check(args)
    experts, pairs = parse_experts(args.experts), data.read(args.data)
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(args.seed)
    base = adapter.load(args.checkpoint, DTYPES[args.dtype], args.device)
    examples = data.encode(
        pairs, AutoTokenizer.from_pretrained(args.checkpoint, local_files_only=True), args.max_tokens
    )
    model = adapter.wrap(base, experts, args.rank, args.alpha)
    if args.gradient_checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    print(f"{len(examples)} examples, {len(experts)} experts: {', '.join(map(str, experts))}")
    training.train(model, examples, training.Settings(args.epochs, args.batch, args.rate, args.seed))
    model.save_pretrained(args.output)
    print(f"{args.output}: a PEFT adapter of rank {args.rank}")


def main() -> int:
    """Do what the command line asks; 2 and one line for bad input."""
    try:
        run(arguments())
    except InputError as error:
        print(f"train_expert_lora.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
