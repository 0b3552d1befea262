"""Tables for people."""

from rich.console import Console
from rich.table import Table

_UNBOUNDED = 200


def show(table: Table) -> None:
    """Print a table; wide enough for all of it where nobody looks, in a file or a pipe."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_UNBOUNDED)
    console.print(table, markup=False)
