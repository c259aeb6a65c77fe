"""The program: the script `reunite`, and `python -m reunite_transport`.

Imports next to nothing by itself, so that Ctrl-C is heeded while all else is imported.
"""

from reunite_transport.interrupt import ending_at_once


def main() -> None:
    """Run the command line."""
    with ending_at_once():
        from reunite_transport import cli
    cli.main()


if __name__ == "__main__":
    main()
