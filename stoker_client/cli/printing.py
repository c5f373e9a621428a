"""What commands print: JSON for programs; tables, notes and text for people."""

import sys
from collections.abc import Sequence

import click
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

PIPE_WIDTH = 160
# What the last column keeps on a narrow terminal: a word and its state.
LAST_WIDTH = 12


def print_message(message: Message) -> None:
    """Print a message of the API as JSON (protobuf's own mapping, with the fields' own names, zeros included)."""
    click.echo(as_json(message))


def as_json(message: Message, indent: int | None = 2) -> str:
    """A message of the API as JSON; in one line without `indent`."""
    return MessageToJson(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=indent
    )


def console() -> Console:
    """Standard output for tables: as wide as the terminal, and wide enough for a line a row where there is none."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)


def table(title: str, left: Sequence[str], right: Sequence[str] = (), last: str = "") -> Table:
    """An empty table with these columns of words, of figures, and one last that takes what room is left.

    Where a terminal is too narrow, words go on in the next line; figures are never cut short.
    """
    made = Table(
        title=title, title_justify="left", title_style="", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for name in left:
        made.add_column(name, overflow="fold")
    for name in right:
        made.add_column(name, justify="right", no_wrap=True)
    if last:
        made.add_column(last, overflow="fold", min_width=LAST_WIDTH)
    return made


def note(line: str) -> None:
    """A line beside the answer: dim, on standard error."""
    click.secho(line, dim=True, err=True)


def printable(text: str) -> str:
    """A model's text as it may go to standard output: on a terminal without control characters, which could move the
    cursor or rename the window; into a file or a pipe as it is."""
    if not sys.stdout.isatty():
        return text
    return "".join(character for character in text if not _control(character))


def _control(character: str) -> bool:
    return (character < " " and character not in "\n\t") or "\x7f" <= character <= "\x9f"
