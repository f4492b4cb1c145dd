"""Preference data: rows -> token ids -> ragged batches."""

from lightning_dpo.data.module import PreferenceDataModule

__all__ = ["PreferenceDataModule"]
