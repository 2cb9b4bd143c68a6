r"""The one exception that a person, not a programmer, is meant to read.

`python -m minialign` prints its message as a single line and ends with status 2; nothing else in the project turns
an exception into text. Everything that a user can get wrong (a file, a value, a run folder) raises it, so the message
must name the thing, the value, what was expected and what to do.
"""


class UserError(Exception):
    """Something that the user can put right; the message says what and how.

    Args:
        message: one line: what is wrong, with the value, and the remedy.
        file: the file that it is in, if any.
        line: the line of that file, counted from 1.
    """

    def __init__(self, message: str, file: object = None, line: int | None = None):
        place = "" if file is None else f"{file}: " if line is None else f"{file}, line {line}: "
        super().__init__(place + message)
