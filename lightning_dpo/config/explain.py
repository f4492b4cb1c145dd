"""Errors of Hydra and OmegaConf as one line: the key, the value, what is allowed."""

from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from lightning_dpo.config.suggest import choices, key_hint, known_keys, name_hint
from lightning_dpo.config.typed import readable, remedy
from lightning_dpo.errors import ConfigError

NO_NAME = "Config group override must be a string or a list"
"""Start of Hydra's error for `loss=null`, which has no attributes."""
NO_LOG = "Unable to configure handler"
"""Start of the error of Python's logging for a log file that cannot be opened."""


@contextmanager
def explained(overrides: list[str]) -> Iterator[None]:
    """Errors: ConfigError in place of the errors of Hydra and OmegaConf."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error, overrides)) from None
    except ValueError as error:
        if isinstance(cause := error.__cause__, OSError) and str(error).startswith(NO_LOG):
            raise ConfigError(f"output_dir: {cause.strerror} ({cause.filename}); type another folder") from None
        if not str(error).startswith(NO_NAME):
            raise
        raise ConfigError(explain(error, overrides)) from None


def explain(error: BaseException, overrides: list[str]) -> str:
    """The error in one line."""
    text = _one_line(error).split(" Config search path")[0]
    typed = {override.partition("=")[0].lstrip("+~"): override for override in overrides}
    cause = error.__cause__
    if "Could not delete 'logger'" in text:
        return "~logger: it is a list of choices; type logger=[] or logger=csv, which write metrics.csv alone"
    if isinstance(error, OverrideParseException):
        shown = next((o for o in overrides if readable(o) == error.override), error.override)
        return f"{shown}: Hydra cannot read it; {remedy(shown) or text}"
    if isinstance(error, MissingConfigException):
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        if group == "hydra/launcher" and name.startswith(("joblib", "submitit")):
            return f"launcher={name} needs a plugin: pip install 'lightning-dpo[sweep]', or type launcher=local"
        return f"{typed[group]}: no such {group}; {name_hint(group, name)}" if group in typed else text
    if text.startswith(NO_NAME):
        override = next((o for key, o in typed.items() if o.endswith("=null") and choices(key)), text)
        return f"{override}: a group takes a name; allowed: {', '.join(choices(override.partition('=')[0]))}"
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.full_key in typed:
        return _no_such_key(str(cause.full_key), typed)
    return text if cause is None or _one_line(cause) == text else f"{text} ({_one_line(cause)})"


def _one_line(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return " ".join(line for line in lines if line and not line.startswith(("full_key", "object_type")))


def _no_such_key(key: str, typed: dict[str, str]) -> str:
    known = known_keys()
    if key in known:  # in the default run
        return f"{typed[key]}: no such key with {' '.join(o for group, o in typed.items() if choices(group))}"
    return f"{typed[key]}: no such key; {key_hint(key, typed[key].partition('=')[2], known)}"
