"""What a process of a comparison is asked, as the JSON that it is started with."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Request:
    """What a process is asked to do.

    Attributes:
        task: `prepare`, or `measure`.
        config: the training, as `RunConfig.to_json` gives it.
        inputs: the folder of what all processes are given.
        framework: one of `FRAMEWORKS`; for `prepare`, all of them with commas between.
        seconds: of training that is metered.
        tf32: whether a GPU may round the factors of float32 products to TF32.
    """

    task: str
    config: Mapping[str, Any]
    inputs: str
    framework: str
    seconds: float = 0.0
    tf32: bool = True
