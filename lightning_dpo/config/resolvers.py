"""Where conf/ is, and what `${name:...}` stands for in it."""

import os
from pathlib import Path

from omegaconf import OmegaConf

from lightning_dpo.demo import ASSETS
from lightning_dpo.files import slug


def config_folder() -> str:
    """conf/ of a clone, or inside an installed package; absolute, so that it is found from any working directory."""
    package = Path(__file__).parents[1]
    installed = package / "conf"
    return str(installed if installed.is_dir() else package.parent / "conf")


def visible_gpus() -> list[str]:
    """The CUDA devices of this machine that may be used, as CUDA_VISIBLE_DEVICES names them."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def register() -> None:
    """`${slug:name}` for file names and `${bundled:file}` for what the package ships; `${parallel_jobs:}` is the number
    of GPUs or, without any, -1: as many as there are cores."""
    OmegaConf.register_new_resolver("slug", slug, replace=True)
    OmegaConf.register_new_resolver("bundled", lambda name: str(ASSETS / name), replace=True)
    OmegaConf.register_new_resolver("parallel_jobs", lambda: len(visible_gpus()) or -1, replace=True)
