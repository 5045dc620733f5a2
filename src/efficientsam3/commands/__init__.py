"""One module per command: its arguments and the call of the typed function behind it."""
