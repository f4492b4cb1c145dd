"""The folder conf/, and the values of `${name:...}` in it."""

import os
from pathlib import Path

from omegaconf import OmegaConf

from lightning_dpo.demo import ASSETS
from lightning_dpo.files import slug


def config_folder() -> str:
    """Absolute path of conf/, in a clone or in the installed package."""
    package = Path(__file__).parents[1]
    installed = package / "conf"
    return str(installed if installed.is_dir() else package.parent / "conf")


def visible_gpus() -> list[str]:
    """The CUDA devices of this machine, as CUDA_VISIBLE_DEVICES names them."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def register() -> None:
    """`${slug:name}` makes a file name, `${bundled:file}` is the path of a bundled file, and `${parallel_jobs:}` is the
    number of GPUs, or -1 (as many as cores) without one."""
    OmegaConf.register_new_resolver("slug", slug, replace=True)
    OmegaConf.register_new_resolver("bundled", lambda name: str(ASSETS / name), replace=True)
    OmegaConf.register_new_resolver("parallel_jobs", lambda: len(visible_gpus()) or -1, replace=True)
