"""The one exception that users are meant to read."""


class UserError(Exception):
    """Something the user can mend. The message names file, key or clip, the value found, and the next step.

    Command lines print it as one line and leave with status 1; a traceback is for our own mistakes.
    """
