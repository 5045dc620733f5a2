import io

import pytest
from rich.table import Table

from efficientsam3.runtime.console import Console
from efficientsam3.runtime.tables import plain_table


def test_names_are_neither_markup_nor_emoji() -> None:
    name = "[bold]x[/nope] :smile:"
    table = plain_table(name, [name], name)
    table.add_row(name)
    plain = Table(name, title=name)
    written = io.StringIO()
    console = Console(file=written, width=120)
    console.print(name, table, plain)
    assert written.getvalue().count(name) == 7


def test_a_closed_pipe_is_an_exception_of_the_caller() -> None:
    class Closed(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        Console(file=Closed()).print("a line")
