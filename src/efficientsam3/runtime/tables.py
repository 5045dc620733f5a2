"""Tables for a terminal."""

from rich.box import SIMPLE
from rich.table import Table


def plain_table(title: str, columns: list[str], caption: str) -> Table:
    """An empty table whose first column is aligned left and whose other columns are aligned right."""
    table = Table(title=title, caption=caption, box=SIMPLE, title_justify="left", caption_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table
