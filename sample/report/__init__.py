"""One HTML page about runs and evaluations: it holds their pictures, curves, numbers and settings."""

from imgtok.sample.report.page import write_report

__all__ = ["write_report"]
