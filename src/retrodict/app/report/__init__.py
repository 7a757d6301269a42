"""A report is plain data (`Report`), and `write_report` makes one HTML file of it."""

from retrodict.app.report.model import (
    Block,
    Card,
    Code,
    Images,
    LineChart,
    Report,
    Scatter,
    Section,
    Series,
    Table,
    Text,
    with_interval,
)
from retrodict.app.report.page import write_report

__all__ = [
    "Block",
    "Card",
    "Code",
    "Images",
    "LineChart",
    "Report",
    "Scatter",
    "Section",
    "Series",
    "Table",
    "Text",
    "with_interval",
    "write_report",
]
