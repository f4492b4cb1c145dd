"""Which keys do not make it another run."""

FREE = (
    *("output_dir", "run_name", "sweep_name", "logger", "resume", "resume_override", "checkpoint", "hydra"),
    *("objective", "reference.cache_dir"),
    *(f"trainer.{name}" for name in ("max_time", "enable_progress_bar", "enable_model_summary", "default_root_dir")),
    *(f"data.{name}" for name in ("num_workers", "num_proc", "cache_dir", "report", "report_plot", "report_ches")),
)
"""Keys, with all below them, that a run may change where it goes on: they change no number."""


def is_free_to_change(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)
