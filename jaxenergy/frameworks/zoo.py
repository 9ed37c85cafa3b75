"""Every family at a size that a comparison of all of them can afford.

Random data, so that nothing has to be had first; images of CIFAR's shape and text of 64 characters.
The sizes give updates of some 10 to 150 ms on two CPU cores, at 128 examples.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxenergy.config import RunConfig
from jaxenergy.errors import UsageError, unknown_value

ALL = "all"
_IMAGES = {"dataset": "synthetic:32x32x3,examples=4000"}
_TEXT = {"dataset": "synthetic:64,classes=65,examples=4000"}

ZOO: Mapping[str, Mapping[str, Any]] = {
    "mlp": {"depth": 3, "width": 512, **_IMAGES},
    "cnn": {"depth": 4, "width": 16, **_IMAGES},
    "resnet": {"depth": 8, "width": 16, **_IMAGES},
    "wide_resnet": {"depth": 10, "width": 1, **_IMAGES},
    "mobilenet": {"depth": 2, "width": 8, **_IMAGES},
    "convnext": {"depth": 2, "width": 8, **_IMAGES},
    "vit": {"depth": 4, "width": 64, **_IMAGES},
    "mixer": {"depth": 4, "width": 64, **_IMAGES},
    "transformer_lm": {"depth": 2, "width": 64, **_TEXT},
    "lstm": {"depth": 1, "width": 64, **_TEXT},
}


def zoo_configs(names: str, config: RunConfig) -> dict[str, RunConfig]:
    """The trainings that are compared, by family.

    Args:
        names: families with commas between, or `all`.
        config: what they have in common; depth, width, data set and the like are the zoo's.

    Returns:
        A config for each, in the order given.

    Raises:
        UsageError: a name is unknown or comes twice.
    """
    chosen = list(ZOO) if names == ALL else [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in ZOO:
            raise unknown_value("--models", name or names, [*ZOO, ALL])
        if chosen.count(name) > 1:
            raise UsageError(f"--models={names} names {name} twice.")
    return {name: dataclasses.replace(config, model=name, **ZOO[name]) for name in chosen}
