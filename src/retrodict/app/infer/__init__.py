"""`retrodict infer`: a model from a file, data from a CSV, a folder of results with a report."""

from retrodict.app.infer.run import infer, infer_files, write_example

__all__ = ["infer", "infer_files", "write_example"]
