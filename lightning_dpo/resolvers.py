"""What `${name:...}` in conf/ stands for. Importing this module registers them, in every process of a sweep."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

LONGEST = 120
"""Bytes of a name; file systems end at 255."""


def slug(text: Any) -> str:
    """A name that is one safe path component; a long one ends in a hash of the whole.

    >>> slug("../../etc/passwd"), slug("beta 0.1, loss=ipo")
    ('etc-passwd', 'beta-0.1-loss-ipo')
    >>> len(slug("a" * 200)), slug("a" * 200) == slug("a" * 201)
    (120, False)
    """
    name = re.sub(r"[^\w.+=-]+", "-", re.sub(r"=", "-", str(text))).strip("-.") or "run"
    if len(name.encode()) <= LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name.encode()[: LONGEST - len(digest) - 1].decode(errors='ignore')}-{digest}"


def visible_gpus() -> list[str]:
    """The CUDA devices of this machine that may be used, as CUDA_VISIBLE_DEVICES names them."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def register() -> None:
    """`${slug:name}` for file names and `${bundled:file}` for what the package ships; `${parallel_jobs:}` is the number
    of GPUs or, without any, -1: as many as there are cores."""
    assets = Path(__file__).parent / "demo" / "assets"
    OmegaConf.register_new_resolver("slug", slug, replace=True)
    OmegaConf.register_new_resolver("bundled", lambda name: str(assets / name), replace=True)
    OmegaConf.register_new_resolver("parallel_jobs", lambda: len(visible_gpus()) or -1, replace=True)


register()
