"""Values under names, in files that people and other programs read too.

A task with `dataset="{name}.parquet"` saves its result; `daglite.save_dataset` and `daglite.load_dataset` do the same by hand. Where
to is said by `session(dataset_store=...)`, or by the task. What is in a file is decided by a format, of which there are: `pickle`,
`json`, `text` and `bytes`; `csv` and `parquet` for pandas, polars and pyarrow; `npy` for NumPy; and those of `register_format`.
"""

from ._formats import DatasetFormat, register_format
from ._store import DatasetStore

__all__ = ["DatasetFormat", "DatasetStore", "register_format"]

for _public in (DatasetFormat, DatasetStore, register_format):
    _public.__module__ = __name__  # where people find them
del _public
