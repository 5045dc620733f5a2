"""Errors that the user can fix, as opposed to bugs."""


class UserError(ValueError):
    """Something outside the program is wrong: a path, a value, a file's content.

    Its message is one sentence that names what is wrong, the value, and the remedy. The command line prints it
    without a traceback and returns exit code 2.
    """


class UnreadableError(UserError):
    """The system cannot read a file, whatever its content: work that skips damaged items must not skip these."""
