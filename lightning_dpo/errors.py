"""Errors that a person can act on; the commands print them in one line and exit with code 2."""


class ConfigError(ValueError):
    """A key or a value of the configuration is wrong. Says which, what was found and what is allowed."""


class NonFiniteError(ArithmeticError):
    """A loss, a gradient or a weight is NaN or infinite."""


class DataError(ValueError):
    """The data cannot be used as it is. Says where, what was found and what is allowed."""
