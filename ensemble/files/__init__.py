"""Predictions that anyone made with any tool, read from plain files and brought to one row order.

A file is .npy ((N,) or (N, T)), .csv or .parquet. Rows are those of the target file: by id where
both files name their rows, else by position. Rows are counted from 0 in what is said of them.
"""

from ensemble.files.predictions import write_predictions as write_predictions
from ensemble.files.read import PlainFiles as PlainFiles
from ensemble.files.read import read_files as read_files
from ensemble.files.read import read_test_files as read_test_files
