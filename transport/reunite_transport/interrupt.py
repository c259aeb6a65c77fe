"""Ctrl-C while a program starts, when there is nothing to clean up yet."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Let Ctrl-C end the program here and now, with the exit code of a shell and without a word,
    until the block ends or takes Ctrl-C over.

    For imports: a KeyboardInterrupt inside of one is printed, wrapped into another error or
    swallowed, depending on where it hits. A program that was told to ignore Ctrl-C still does.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
