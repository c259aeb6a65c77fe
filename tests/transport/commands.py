"""The program `reunite` in processes of its own, as a shell runs it."""

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

REUNITE = Path(sys.executable).with_name("reunite")
# Slower than any command here on a busy machine.
SECONDS_MAX = 120
# Nobody listens on it: it is reserved for multiplexing.
NO_RELAY = "ws://127.0.0.1:1"
ODD = "my [bold]odd[/] :smile:"

Finished = subprocess.CompletedProcess[str]


class Command(Protocol):
    """Runs `reunite` with arguments, to its end."""

    def __call__(self, *arguments: object, env: dict[str, str] | None = None) -> Finished: ...


def heeding_ctrl_c() -> None:
    """For a child: a shell that starts tests in the background has them ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A `reunite` that runs beside the test, where Ctrl-C is heeded; ended with the block."""
    process = subprocess.Popen(
        [REUNITE, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heeding_ctrl_c,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=SECONDS_MAX)


def query(path: Path, sql: str) -> list[Any]:
    """Run SQL as any other program would."""
    with closing(sqlite3.connect(path)) as conn, conn:
        return conn.execute(sql).fetchall()


def failed(finished: Finished, code: int, *words: str) -> None:
    """The command failed with this code and one line on stderr that holds the words."""
    assert finished.returncode == code, finished
    assert finished.stdout == ""
    assert len(finished.stderr.splitlines()) == 1, finished.stderr
    assert finished.stderr.startswith("reunite: ")
    for word in words:
        assert word in finished.stderr
