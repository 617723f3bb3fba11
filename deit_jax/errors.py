"""The errors that a user can mend."""


class UserError(ValueError):
    """Something given to the program cannot be used. The message is one line: what, where, what to do.

    The command line prints it without a traceback.
    """
