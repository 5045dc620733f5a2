"""The console of every command: what it prints is text as it is."""

from typing import Any

import rich.console


class Console(rich.console.Console):
    """rich's, except that square brackets and colons in a name or a path mean nothing, nor do numbers have colours."""

    def __init__(self, **options: Any) -> None:
        """See rich."""
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def on_broken_pipe(self) -> None:
        """Leave it to `runtime.endings`, instead of ending the process in the middle of its work."""
        raise  # noqa: PLE0704 - called while the BrokenPipeError is handled
