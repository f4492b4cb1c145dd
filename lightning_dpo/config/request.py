"""What the user asked for."""

from dataclasses import dataclass

from omegaconf import DictConfig


@dataclass(frozen=True)
class Request:
    """The composed configuration, the chosen file of each group, and the overrides that were typed."""

    cfg: DictConfig
    choices: dict[str, str | None]
    overrides: list[str]
