"""SHA-256 of whole files, beside other work: hashlib's code is the machine's fastest and runs without the GIL."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path

CHUNK = 4 << 20


def sha256(data: bytes) -> str:
    """In hex."""
    return hashlib.sha256(data).hexdigest()


class FileHashes(threading.Thread):
    """SHA-256 in hex of some files, computed in a thread of its own; ``with`` ends it early on an error."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Nothing starts yet."""
        super().__init__(daemon=True)
        self._paths, self._given_up = paths, threading.Event()
        self._digests: list[str] = []
        self._error: OSError | None = None

    def __enter__(self) -> FileHashes:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, done or not."""
        self._given_up.set()
        self.join()

    def run(self) -> None:
        """Hash file after file."""
        try:
            self._digests = [self._hash(path) for path in self._paths]
        except OSError as error:
            self._error = error

    def result(self) -> list[str]:
        """Wait for the digests. Raises OSError where a file can't be read."""
        self.join()
        if self._error:
            raise self._error
        return self._digests

    def _hash(self, path: Path) -> str:
        state, buffer = hashlib.sha256(), bytearray(CHUNK)
        with path.open("rb", buffering=0) as file:
            while (n := file.readinto(buffer)) and not self._given_up.is_set():
                state.update(memoryview(buffer)[:n])
        return state.hexdigest()
