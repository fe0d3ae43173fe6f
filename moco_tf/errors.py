"""Errors that a user can mend."""


class UserError(Exception):
    """Bad input: says what came, what was expected and how to mend it, in one line.

    Programs print it without a traceback and exit with status 1. Of several ranks, which all meet it, one prints.
    """

    _keras_call_info_injected = True  # else Keras adds the arguments of a layer's call to the message


class RankError(UserError):
    """A UserError that one rank may meet alone, so that it prints itself."""


class FirstRankError(UserError):
    """A UserError of rank 0 as the other ranks meet it: rank 0 says it, they only end."""
