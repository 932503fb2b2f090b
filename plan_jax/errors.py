"""The one exception a person can fix: the command line prints it in one line and exits with code 2."""


class InputError(ValueError):
    """The input or the call was wrong. The message reads "X must R, got V; do F", with file and row for data."""
