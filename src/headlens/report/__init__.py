"""Results as one page to look at: self-contained, offline, safe to open and to pass on."""

from headlens.report.page import write_report

__all__ = ["write_report"]
