"""Everything that decides what a run computes and how it is measured, in one frozen value.

`RunConfig` is the single list of a run's settings: the command line is generated from it, every
value is checked here as far as that needs no other package, `config.json` is written from it, and
the run's id is a hash of it. Names of models, optimizers, data sets and meters are checked by
their registries, since only those know them.
"""

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from jaxenergy.errors import UsageError, unknown_value

# Raised when the same flags would mean another computation or another way of measuring: results
# of different protocols have different ids and are never mixed.
PROTOCOL = 10

PRECISIONS = ("float32", "bfloat16")
FORMS = ("auto", "plain")
RESUME_MODES = ("auto", "never", "require")
# What a run can aim at: `target_accuracy` and so on are settings.
MEASURES = ("accuracy", "return", "bits_per_character")
LOWER_IS_BETTER = ("bits_per_character",)


def _setting(default: Any, help: str, *, identity: bool = True) -> Any:
    """A field of `RunConfig`.

    Args:
        default: its value when the user says nothing.
        help: what it means, as `--help` shows it.
        identity: whether it changes computation or measurement, and so the run's id.
    """
    return dataclasses.field(default=default, metadata={"help": help, "identity": identity})


@dataclasses.dataclass(frozen=True)
class Target:
    """At what evaluation a run ends.

    Attributes:
        measure: what is looked at: `accuracy`, `return` or `bits_per_character`.
        value: what it is to reach.
    """

    measure: str
    value: float

    def is_reached(self, evaluation: Mapping[str, Any]) -> bool:
        """Whether an evaluation, a line of `metrics.jsonl` or the like, is as good as that.

        Of several tasks each has to be, for a mean would let one pay for another.
        """
        by_task = evaluation.get(f"validation_{self.measure}_by_task")
        found = min(by_task.values()) if by_task else evaluation.get(f"validation_{self.measure}")
        if found is None:
            return False
        return found <= self.value if self.measure in LOWER_IS_BETTER else found >= self.value


def find_target(settings: Mapping[str, Any]) -> Target | None:
    """The target that a config's settings name, or None.

    Raises:
        UsageError: they name several.
    """
    given = {
        measure: value
        for measure in MEASURES
        if (value := settings.get(f"target_{measure}")) is not None
    }
    if len(given) > 1:
        flags = " and ".join(f"--target_{measure}={given[measure]:g}" for measure in given)
        raise UsageError(f"{flags} are both a target.\nAllowed: one of them.")
    return Target(*next(iter(given.items()))) if given else None


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The settings of one run; see each field's help for its meaning and unit."""

    model: str = _setting("cnn", "Model family; --list=models prints them.")
    depth: int | None = _setting(None, "Depth in the family's own count of layers.")
    width: int | None = _setting(None, "Width: units or channels of the first stage.")
    model_args: str = _setting("", "The family's further options, e.g. norm=group,dropout=0.1.")
    activation: str | None = _setting(
        None, "Activation; --list=activations prints them; default: the family's."
    )
    optimizer: str = _setting(
        "sgd", "Optax optimizer, or module:function of your own; --list=optimizers prints them."
    )
    optimizer_args: str = _setting(
        "", "The optimizer's hyper-parameters, e.g. momentum=0.9,nesterov=true."
    )
    learning_rate: float | None = _setting(None, "Peak learning rate; default: the optimizer's.")
    schedule: str | None = _setting(
        None, "Learning-rate schedule; --list=schedules prints them; default: cosine, for most."
    )
    weight_decay: float | None = _setting(
        None, "Weight decay on parameters of two or more dimensions; default: the optimizer's."
    )
    clip_norm: float | None = _setting(None, "Clip gradients to this global norm.")
    batch_size: int = _setting(128, "Examples per update.")
    accumulate: int = _setting(1, "Micro-batches per update, each of batch_size / accumulate.")
    task_weights: str = _setting(
        "", "Weights of the tasks' losses in a set of several, e.g. 1,0.5; default: equal."
    )
    task_sampling: str = _setting(
        "examples",
        "Of several tasks: examples draws all examples alike, tasks draws the tasks in equal "
        "number, alternate learns one task an update.",
    )
    augment: bool = _setting(False, "Random crop (and flip, where it keeps the label).")
    epochs: float | None = _setting(None, "Length in passes over the training set; default 40.")
    updates: int | None = _setting(None, "Length in updates, instead of --epochs.")
    eval_every: int | None = _setting(
        None, "Updates between evaluations; default: 20 evaluations in all."
    )
    target_accuracy: float | None = _setting(
        None, "Stop at the first evaluation with this validation accuracy (0 to 1), in every task."
    )
    target_return: float | None = _setting(
        None, "Stop at the first evaluation with this validation return, of a control task."
    )
    target_bits_per_character: float | None = _setting(
        None, "Stop at the first evaluation with at most these bits per character, of a text."
    )
    init_from: str | None = _setting(
        None,
        "Run whose trained layers to begin with, where name and shapes fit: its folder, or "
        "setup:ID for the run of this seed below --out whose settings have that id at seed 0.",
    )
    trainable: str = _setting("all", "Layers to train: all, head, or last:K for the last K.")
    precision: str = _setting("float32", f"Compute precision: {' or '.join(PRECISIONS)}.")
    forms: str = _setting(
        "auto",
        "auto: forms other than plain Flax where they are faster; plain: none of them.",
    )
    seed: int = _setting(0, "Seed of initial parameters, order and augmentation.")
    dataset: str = _setting("digits", "Data set; --list=datasets prints them.")
    data_dir: str | None = _setting(
        None, "Where archives or extracted data sets are.", identity=False
    )
    meters: str = _setting("auto", "auto, none, or a list such as nvml,rapl.")
    idle_seconds: float = _setting(2.0, "Seconds of idle measured before and after; 0: none.")
    checkpoint_every: str = _setting(
        "60s", "Updates (500) or seconds (60s) between checkpoints; 0: only at the end."
    )
    powercap_root: str = _setting(
        "/sys/class/powercap", "Where the kernel's powercap tree is.", identity=False
    )
    out: str = _setting("runs", "Folder that holds the run folders.", identity=False)
    name: str | None = _setting(None, "Name of the run's folder; default: ID-rK.", identity=False)
    resume: str = _setting(
        "auto",
        "auto: continue an unfinished folder; never: refuse one; require: demand one.",
        identity=False,
    )
    overwrite: bool = _setting(
        False, "Start anew; an existing folder is moved aside first.", identity=False
    )
    keep: int = _setting(2, "Checkpoints kept.", identity=False)
    quiet: bool = _setting(False, "Print nothing but errors.", identity=False)
    verbose: bool = _setting(False, "Print what is set up, and why.", identity=False)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name), _types_of(field))
        _check_ranges(self)

    @property
    def id(self) -> str:
        """Ten hexadecimal digits: a hash of the protocol and of each setting off its default.

        Settings at their default are left out, so that a setting added later leaves old ids as
        they are.
        """
        own = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.metadata["identity"] and getattr(self, field.name) != field.default
        }
        text = json.dumps({"protocol": PROTOCOL, **own}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def setup_id(self) -> str:
        """The id at seed 0: runs that differ in the seed alone share it."""
        return dataclasses.replace(self, seed=0).id

    @property
    def source_setup(self) -> str | None:
        """The set-up of the run to begin with, where `init_from` is `setup:ID`; else None."""
        kind, colon, setup = (self.init_from or "").partition(":")
        return setup if colon and kind == "setup" else None

    def identity(self) -> dict[str, Any]:
        """The settings that change computation or measurement, by name."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.metadata["identity"]
        }

    def to_json(self) -> dict[str, Any]:
        """Every setting by name, with the id and the protocol, ready for `config.json`."""
        return {"id": self.id, "protocol": PROTOCOL, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "RunConfig":
        """The config that `to_json` wrote.

        Raises:
            UsageError: a setting is unknown or has a value that is not allowed.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        settings = {k: v for k, v in values.items() if k not in ("id", "protocol", "resolved")}
        for name in settings:
            if name not in names:
                raise unknown_value("setting", name, names)
        return cls(**settings)

    @property
    def target(self) -> Target | None:
        """At what evaluation the run ends; None where its length alone ends it."""
        return find_target(dataclasses.asdict(self))

    def checkpoint_interval(self) -> tuple[int | None, float | None]:
        """`checkpoint_every` as (updates, None), (None, seconds), or (None, None) for never."""
        return parse_interval(self.checkpoint_every)


def parse_interval(text: str) -> tuple[int | None, float | None]:
    """Reads `500` as updates and `60s` as seconds.

    Returns:
        (updates, None), (None, seconds), or (None, None) for `0` and `0s`.

    Raises:
        UsageError: it is neither.
    """
    seconds = text.endswith("s")
    try:
        value = float(text[:-1]) if seconds else int(text)
        if not math.isfinite(value) or value < 0:
            raise ValueError
    except ValueError:
        raise UsageError(
            f"--checkpoint_every={text} is not an interval.\n"
            "Allowed: updates as a whole number (500), seconds (60s), or 0 for none."
        ) from None
    if value == 0:
        return None, None
    return (None, float(value)) if seconds else (int(value), None)


def _types_of(field: dataclasses.Field) -> tuple[type, ...]:
    """The types a field may have, e.g. (int, NoneType)."""
    if isinstance(field.type, types.UnionType):
        return typing.get_args(field.type)
    assert isinstance(field.type, type)
    return (field.type,)


def field_type(name: str) -> type:
    """The type of a setting's value when it is given: bool, int, float or str."""
    for field in dataclasses.fields(RunConfig):
        if field.name == name:
            return next(kind for kind in _types_of(field) if kind is not types.NoneType)
    raise unknown_value("setting", name, [field.name for field in dataclasses.fields(RunConfig)])


_KIND_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    types.NoneType: "null",
}


def parse_setting(name: str, text: str) -> Any:
    """Reads a setting's value from the text a user typed.

    Args:
        name: the setting's name.
        text: what was typed.

    Returns:
        The value, of the setting's type; its range is checked by `RunConfig`.

    Raises:
        UsageError: the text is not of that type.
    """
    kind = field_type(name)
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        value = kind(text)
        if kind is float and not math.isfinite(value):
            raise ValueError
        return value
    except (KeyError, ValueError):
        raise UsageError(
            f"--{name}={text} is not allowed.\nAllowed: {_KIND_WORDS[kind]}."
        ) from None


def _check_type(name: str, value: Any, allowed: tuple[type, ...]) -> None:
    if isinstance(value, str) and "\0" in value:
        raise UsageError(f"--{name}={value!r} has a null character.\nAllowed: text without one.")
    fits = type(value) in allowed or (float in allowed and type(value) is int)
    if not fits or (isinstance(value, float) and not math.isfinite(value)):
        words = " or ".join(_KIND_WORDS[kind] for kind in allowed)
        raise UsageError(f"--{name}={value} is not allowed.\nAllowed: {words}.")


# For each numeric setting: what it must satisfy, and how that reads.
_RANGES = {
    "depth": (lambda v: v >= 1, "1 or more"),
    "width": (lambda v: v >= 1, "1 or more"),
    "learning_rate": (lambda v: v > 0, "more than 0"),
    "weight_decay": (lambda v: v >= 0, "0 or more"),
    "clip_norm": (lambda v: v > 0, "more than 0"),
    "batch_size": (lambda v: v >= 1, "1 or more"),
    "accumulate": (lambda v: v >= 1, "1 or more"),
    "epochs": (lambda v: v > 0, "more than 0"),
    "updates": (lambda v: 1 <= v < 2**31, "1 to 2147483647"),
    "eval_every": (lambda v: v >= 1, "1 or more"),
    "target_accuracy": (lambda v: 0 < v <= 1, "more than 0, at most 1"),
    "target_bits_per_character": (lambda v: v > 0, "more than 0"),
    "seed": (lambda v: 0 <= v < 2**32, "0 to 4294967295"),
    "idle_seconds": (lambda v: 0 <= v <= 3600, "0 to 3600"),
    "keep": (lambda v: v >= 1, "1 or more"),
}


def _check_ranges(config: RunConfig) -> None:
    for name, (holds, words) in _RANGES.items():
        value = getattr(config, name)
        if value is not None and not holds(value):
            raise UsageError(f"--{name}={value} is out of range.\nAllowed: {words}.")
    for name, allowed in (
        ("precision", PRECISIONS),
        ("forms", FORMS),
        ("resume", RESUME_MODES),
    ):
        if getattr(config, name) not in allowed:
            raise unknown_value(f"--{name}", getattr(config, name), allowed)
    parse_interval(config.checkpoint_every)
    find_target(dataclasses.asdict(config))
    if config.batch_size % config.accumulate:
        raise UsageError(
            f"--accumulate={config.accumulate} does not divide --batch_size={config.batch_size}.\n"
            f"Allowed: a divisor of the batch size."
        )
    if config.epochs is not None and config.updates is not None:
        raise UsageError(
            f"--epochs={config.epochs:g} and --updates={config.updates} both give the length.\n"
            "Allowed: one of the two."
        )
    if config.quiet and config.verbose:
        raise UsageError("--quiet and --verbose contradict each other.\nAllowed: one of the two.")
