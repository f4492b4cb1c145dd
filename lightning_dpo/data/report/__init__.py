"""The data report, printed before training."""

from lightning_dpo.data.report.page import ReportOptions, ches_page, data_page, stream_page

__all__ = ["ReportOptions", "ches_page", "data_page", "stream_page"]
