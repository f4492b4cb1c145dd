"""Which keys do not make it another run, and which do."""

from collections.abc import Mapping
from typing import Any

FREE = (
    *("output_dir", "run_name", "sweep_name", "logger", "resume", "resume_override", "checkpoint", "hydra"),
    *("objective", "reference.cache_dir"),
    *(f"trainer.{name}" for name in ("max_time", "enable_progress_bar", "enable_model_summary", "default_root_dir")),
    *(f"data.{name}" for name in ("num_workers", "num_proc", "cache_dir", "report", "report_plot", "report_ches")),
)
"""Keys, with all below them, that a run may change where it goes on: they change no number."""


def is_free_to_change(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def differences(former: Mapping[str, Any], now: Mapping[str, Any], counted: tuple[str, ...] = ()) -> list[str]:
    """The keys that make it another run, as `key old -> new`; those in `counted` do, free or not.

    A file that could not be read then or now is none of them: the run itself says what is missing.
    """
    found = []
    for key in {**former, **now}:
        old, new = former.get(key), now.get(key)
        unread = key.endswith("(content)") and None in (old, new)
        if old != new and not unread and (key in counted or not is_free_to_change(key)):
            found.append(f"{key} {old} -> {new}")
    return found
