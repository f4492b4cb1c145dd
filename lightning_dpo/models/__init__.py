"""Policies and tokenizers: loading, export, and what is done to their layers."""

from lightning_dpo.models.loading import load_model, load_tokenizer

__all__ = ["load_model", "load_tokenizer"]
