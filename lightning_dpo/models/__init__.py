"""Policies and tokenizers: loading, export, and options of the layers."""

from lightning_dpo.models.checks import check_fits, check_tokenizers, positions
from lightning_dpo.models.loading import load_model, resize_embeddings
from lightning_dpo.models.tokenizers import load_tokenizer

__all__ = ["check_fits", "check_tokenizers", "load_model", "load_tokenizer", "positions", "resize_embeddings"]
