"""The process of `trial`: applies edits to Yjs documents until one takes too much, and then dies.

Reads the root's name, a document and what is applied to it from stdin, each after its length in
four bytes, and answers each edit with one byte, as it does when it is ready. Run by its path, so it
imports nothing of the relay.
"""

import sys
from typing import Any, BinaryIO, Final

from pycrdt import Array, Doc, Map, Text

CPU_SECONDS_MAX: Final = 2
MEMORY_BYTES_MAX: Final = 2 << 30
_ROOTS: Final = {b"text": Text, b"list": Array, b"json": Map}


def main() -> None:
    """Answer what comes in until it ends."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while True:
        answers.write(b".")
        answers.flush()
        head = requests.read(4)
        if not head:
            return
        root = requests.read(int.from_bytes(head, "big"))
        before, delta = _part(requests), _part(requests)
        _limit()
        _apply(root, before, delta)


def _part(requests: BinaryIO) -> bytes:
    return requests.read(int.from_bytes(requests.read(4), "big"))


def _apply(root: bytes, before: bytes, delta: bytes) -> None:
    """All that a relay, and everybody after it, does with what is applied."""
    doc = Doc[Any]()
    for update in (before, delta):
        if update:
            doc.apply_update(update)
    again = Doc[Any]()
    again.apply_update(doc.get_update())
    str(again.get(root.decode(), type=_ROOTS[root]))


def _limit() -> None:
    """Let the system end this process when the next edit takes too much."""
    try:
        import resource
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + CPU_SECONDS_MAX
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, most))
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, most))


if __name__ == "__main__":
    main()
