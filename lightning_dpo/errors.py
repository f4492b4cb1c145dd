"""Errors that a person can act on: a command prints one line and exits with their code."""


class ConfigError(ValueError):
    """A key or a value of the configuration is wrong. Says which, what was found and what is allowed."""


class DataError(ValueError):
    """The data cannot be used. Says where, what was found and what is allowed."""


class NonFiniteError(ArithmeticError):
    """A loss, a gradient or a weight is NaN or infinite."""


class OutOfTime(RuntimeError):
    """`trainer.max_time` is over. The run is saved and not finished."""


EXIT_CODES: dict[type[Exception], int] = {ConfigError: 2, DataError: 2, NonFiniteError: 1, OutOfTime: 1}
"""Besides: 0 for a finished run, 130 and 143 after Ctrl-C and SIGTERM, 1 for any other error."""
