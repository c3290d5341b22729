"""Any tabular file or hub dataset, turned into the one record format."""

from workbench.data.load import load_examples
from workbench.data.report import BadRow, LoadReport
from workbench.data.specs import Choice, Column, Constant

__all__ = ["BadRow", "Choice", "Column", "Constant", "LoadReport", "load_examples"]
