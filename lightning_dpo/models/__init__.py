"""Policies and tokenizers: loading, export, and options of the layers."""

from lightning_dpo.models.loading import load_model, load_tokenizer

__all__ = ["load_model", "load_tokenizer"]
