"""How a command fails."""


class Failure(Exception):
    """A command cannot be done; the message is one line that says what to do."""
