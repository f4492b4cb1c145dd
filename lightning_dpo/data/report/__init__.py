"""What is in the data, said before training."""

from lightning_dpo.data.report.page import ReportOptions, ches_page, data_page, stream_page

__all__ = ["ReportOptions", "ches_page", "data_page", "stream_page"]
