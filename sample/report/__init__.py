"""The page that a quickstart ends with: one HTML file that holds its pictures, curves and settings."""

from imgtok.sample.report.page import write_report

__all__ = ["write_report"]
