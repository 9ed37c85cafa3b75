"""Run folders: writing, summarising and reading what a run leaves behind. Knows no jax.

`choose_folder(...).create()` gives the `RunFolder` that a run writes to, `summarise` turns its
lines into the summary, `read_run` and `read_runs` read it back.
"""

from jaxenergy.records.files import RecordError
from jaxenergy.records.folder import FolderChoice, RunFolder, choose_folder
from jaxenergy.records.reader import Run, read_run, read_runs
from jaxenergy.records.schema import SCHEMA
from jaxenergy.records.summary import summarise

__all__ = [
    "SCHEMA",
    "FolderChoice",
    "RecordError",
    "Run",
    "RunFolder",
    "choose_folder",
    "read_run",
    "read_runs",
    "summarise",
]
