"""Tables on the terminal."""

import shutil
from collections.abc import Sequence
from typing import Final

import click

_UNLIMITED_WIDTH: Final = 1_000
"""Width if the output is not a terminal: one line per row, for grep and files."""


def terminal_width() -> int:
    """Return the width of the terminal or COLUMNS; practically unlimited if the output is not a terminal."""
    return shutil.get_terminal_size((_UNLIMITED_WIDTH, 0)).columns


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print rows with a label in the first column and figures, aligned right, in the others.

    Nothing is wrapped: if the table is wider than the terminal, labels get lines of their own.
    """
    table = [tuple(columns), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    figures = "".join(f"  {{:>{width}}}" for width in widths[1:])
    is_split = sum(widths) + 2 * len(widths[1:]) > terminal_width()
    margin = len(columns[0]) if is_split else widths[0]
    if title:
        click.echo(f"{title}\n")
    for number, (label, *values) in enumerate(table):
        if is_split and number:
            if number == 1 or label != table[number - 1][0]:
                click.echo(label)
            label = ""
        line = f"{label:{margin}}{figures.format(*values)}"
        click.echo(line if number else click.style(line, bold=True))
