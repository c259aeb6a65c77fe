"""What the command line writes: text as it is, whatever names and values hold.

Nothing of a file is taken as markup, and what would control the terminal is made visible.
"""

import json
import re
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for a program.")]

# Without a terminal nothing is wrapped or cut.
UNBOUNDED_COLUMNS: Final = 10_000


def console(*, stderr: bool = False) -> "Console":
    """A console that takes text as it is: no markup, no emoji names, no colours for numbers."""
    # Imported here: most of what is said is a line of plain text.
    from rich.console import Console

    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = UNBOUNDED_COLUMNS
    return console


def complain(message: str) -> None:
    """One line on stderr, whatever the message holds."""
    line = " ".join(part.strip() for part in message.splitlines())
    typer.echo(f"reunite: {plain(line)}", err=True)


def plain(text: object) -> str:
    """Text with what would control the terminal made visible."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


# Control characters, line ends, changes of direction, and bytes that are not UTF-8.
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def print_json(value: object) -> None:
    """One line; a blob, which JSON has not, as {"blob": hex}, as `reunite_rejected` does."""
    typer.echo(json.dumps(value, default=lambda blob: {"blob": blob.hex()}))


def shown_key(key: object) -> str:
    """A key as a line of text."""
    return f"X'{key.hex()}'" if isinstance(key, bytes) else str(key)


def counted(count: int, noun: str) -> str:
    """A number of things: `1 row`, `1,234 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
