"""The command line: finds the command, runs it, and turns every failure into one line and an exit code.

0 done, 1 the thing checked does not hold, 2 bad input or usage, 3 the model or the device failed, 130 interrupted.
Commands are modules of this package, imported when they are called for.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from safex.errors import SafexError

COMMANDS = {
    "info": "what a model file or a profile file holds",
    "profile": "count which experts a model selects, prompt by prompt",
    "identify": "find experts that the prompt sets use differently: stable groups, with controls",
    "compare": "what changed between two profiles or two expert sets",
    "audit": "all of it in one folder, resumable, with a verdict: is safety concentrated?",
    "report": "one HTML page, pictures and tables from result files",
    "eval": "refusal before and after masking experts, against control masks",
    "judge": "read the responses of an evaluation again, with other judges",
    "sweep": "mask experts one by one: what each does to the refusal",
    "redundancy": "how many experts must be masked until refusal falls by half",
    "dump": "keep what experts put out for each prompt, for linear probes",
    "probe": "what linear probes read from experts, against random experts and words",
    "mask": "write a mask into a model file, new or in place",
    "merge": "add adapters to chosen experts of a model file, in its own quant type",
    "verify": "prove that an edited model file is what it says, and nothing else",
    "restore": "take an in-place edit back",
    "diff": "what differs between two model files, slice by slice",
    "serve": "an OpenAI-compatible server for a model under a mask",
    "trace": "one prompt and its answer as JSON of the official SAFEx layout",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words or os.environ.get("SAFEX_DEBUG", "0") not in ("", "0")
    try:
        return _run(words)
    except SystemExit as done:  # --help and --version
        _flush()
        return done.code if isinstance(done.code, int) else 0
    except BaseException as error:
        if debug:
            traceback.print_exc()
        return _explain(error)


def _run(words: list[str]) -> int:
    from .parser import parse

    args = parse(words, COMMANDS)
    code: int = args.run(args)
    return code


def _explain(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return _fail(str(error) or "interrupted", 130)
    if isinstance(error, SafexError):
        return _fail(str(error), error.exit_code)
    if isinstance(error, MemoryError):
        return _fail("not enough memory; try a smaller --ctx or --ubatch", 3)
    bug = f"{type(error).__name__}: {error}"
    return _fail(f"this is a bug in safex-native: {bug}; run again with --debug and report what it prints", 3)


def _flush() -> None:
    """Let a reader that went away raise nothing at exit."""
    from .output import write

    write(sys.stdout, "")


def _fail(message: str, code: int) -> int:
    from .output import to_stderr

    to_stderr("safex-native: " + " ".join(message.splitlines()))
    return code
