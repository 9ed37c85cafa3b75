"""The runs of the studies, by budget. Studies share them: equal configs are one run, found by id.

smoke   seconds a study: whether everything works; too little data for any verdict
small   digits (and a part of CIFAR-10 where there is --data_dir) on two CPU cores, within an hour
    gpu     as small, with networks that keep a card busy for seconds, and data as in full
full    CIFAR-10 where there is --data_dir, else digits; ten seeds; what a paper would use

With --dataset naming a text or a control task, the base network, what is to be reached and the
sizes are those of `_ON_TEXT` and `_ON_CONTROL`.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

from jaxenergy.config import RunConfig
from jaxenergy.data import kind_of
from jaxenergy.data.tasks import readings_of, single_task_names, task_names
from jaxenergy.errors import UsageError, unknown_value

BUDGETS = ("smoke", "small", "gpu", "full")


@dataclasses.dataclass(frozen=True)
class Context:
    """What a design depends on.

    Attributes:
        budget: one of `BUDGETS`.
        data_dir: where CIFAR-10 is; None where it is not.
        settings: of every run beside: meters, folders.
        seeds: the number of seeds; None for the budget's own.
        dataset: another data set than the budget's own, by name.
    """

    budget: str
    data_dir: str | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    seeds: int | None = None
    dataset: str | None = None

    def __post_init__(self):
        if self.budget not in BUDGETS:
            raise unknown_value("--budget", self.budget, BUDGETS)

    @property
    def scale(self) -> "Scale":
        """The sizes of this budget, for the kind of data set that runs have."""
        scale, kind = SCALES[self.budget], kind_of(self.main_dataset)
        if kind == "text":
            return dataclasses.replace(scale, **_ON_TEXT[self.budget])
        if kind == "control":
            task = self.main_dataset.partition(":")[0]
            target = _RETURNS[task][self.budget]
            return dataclasses.replace(scale, **_ON_CONTROL[self.budget], target=target)
        return scale

    @property
    def main_dataset(self) -> str:
        """The data set of most runs."""
        if self.dataset:
            return self.dataset
        return "cifar10" if self.budget in ("gpu", "full") and self.data_dir else "digits"

    def run(self, **settings: Any) -> RunConfig:
        """A run of this budget: the base network, with some settings of its own."""
        scale = self.scale
        base: dict[str, Any] = {
            "model": scale.model,
            "depth": scale.depth,
            "width": scale.width,
            "dataset": self.main_dataset,
            "batch_size": scale.batch_size,
            "updates": scale.updates,
            "optimizer": "sgd",
            "optimizer_args": "momentum=0.9",
            "learning_rate": scale.learning_rate,
            "schedule": "constant",
            "clip_norm": scale.clip_norm,
            "idle_seconds": scale.idle_seconds,
            "checkpoint_every": "0",
            "quiet": True,
            "data_dir": self.data_dir,
        }
        if settings.get("optimizer", "sgd") != "sgd":
            base["optimizer_args"] = ""
        return RunConfig(**{**base, **settings, **self.settings})

    def seeded(self, n: int | None = None) -> range:
        """The seeds of a design: as many as asked for, else `n`, else the budget's own."""
        return range(self.seeds or n or self.scale.seeds)


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of a budget.

    Attributes:
        seeds: of most designs.
        target_seeds: of runs until the accuracy, whose length is a matter of luck.
        half_seeds: of the grid of which one half chooses and the other estimates.
        depth: of the base network.
        width: of the base network.
        batch_size: of the base run.
        updates: of a run of fixed length.
        learning_rate: of the base run.
        idle_seconds: of idle before and after each run.
        depths: of the study `depth`.
        lengths: in updates, of the study `iterations`.
        short_lengths: further ones of the study `tradeoff`, in which accuracy is still rising.
        activations: of the study `activation`.
        rates: learning rates of the grid.
        batches: batch sizes of the grid.
        examples: that a run of the grid sees at most.
        sgd_rates: learning rates to tune SGD by.
        adam_rates: learning rates to tune Adam by.
        target: what is to be reached at validation, by `measure`.
        setups: model, depth, width and batch size of set-ups of different families.
        setup_updates: of a run of one of them.
        widths: of the study `compute`.
        computations: the same, in floating point operations of a training.
        cifar10: further ones on a part of CIFAR-10.
        model: family of the base network.
        measure: `accuracy`, `return` or `bits_per_character`.
        clip_norm: bound on gradients of every run; None for none.
        least_updates: that such a run may make, however few examples there are.
        looks: evaluations of a run that is to reach the target, at most.
    """

    seeds: int
    target_seeds: int
    half_seeds: int
    depth: int
    width: int
    batch_size: int
    updates: int
    learning_rate: float
    idle_seconds: float
    depths: Sequence[int]
    lengths: Sequence[int]
    short_lengths: Sequence[int]
    activations: Sequence[str]
    rates: Sequence[float]
    batches: Sequence[int]
    examples: int
    sgd_rates: Sequence[float]
    adam_rates: Sequence[float]
    target: float
    setups: Sequence[tuple[str, int, int, int]]
    setup_updates: int
    widths: Sequence[int]
    computations: Sequence[float]
    cifar10: Sequence[tuple[str, int, int, int]] = ()
    model: str = "mlp"
    measure: str = "accuracy"
    clip_norm: float | None = None
    least_updates: int = 32
    looks: int = 200


SCALES = {
    "smoke": Scale(
        seeds=1,
        target_seeds=1,
        half_seeds=1,
        depth=2,
        width=16,
        batch_size=64,
        updates=32,
        learning_rate=0.1,
        idle_seconds=0.0,
        depths=(2, 4),
        lengths=(32, 64),
        short_lengths=(8,),
        activations=("relu", "tanh"),
        rates=(0.1,),
        batches=(64,),
        examples=2048,
        sgd_rates=(0.1,),
        adam_rates=(0.003,),
        target=0.5,
        setups=(("mlp", 2, 16, 64), ("mixer", 2, 16, 64)),
        setup_updates=32,
        widths=(16, 32),
        computations=(5e8, 2e9),
    ),
    "small": Scale(
        seeds=4,
        target_seeds=5,
        half_seeds=6,
        depth=3,
        width=512,
        batch_size=128,
        updates=150,
        learning_rate=0.05,
        idle_seconds=0.0,
        depths=(2, 3, 6),
        lengths=(200, 400, 800, 1600),
        short_lengths=(10, 20, 40, 80),
        activations=("relu", "tanh", "gelu", "elu"),
        rates=(0.001, 0.01, 0.1, 0.5),
        batches=(16, 64, 256, 1024),
        examples=40_000,
        sgd_rates=(0.01, 0.03, 0.1),
        adam_rates=(0.0003, 0.001, 0.003),
        target=0.97,
        setups=(
            ("mlp", 2, 128, 128),
            ("mlp", 2, 1024, 128),
            ("mlp", 4, 512, 32),
            ("cnn", 3, 8, 128),
            ("cnn", 6, 16, 64),
            ("mixer", 2, 64, 128),
            ("vit", 2, 64, 64),
        ),
        setup_updates=120,
        widths=(16, 32, 64),
        computations=(1.5e10, 4.5e10, 1.35e11),
        cifar10=(("cnn", 4, 8, 64), ("mlp", 2, 256, 128)),
    ),
    "gpu": Scale(
        seeds=4,
        target_seeds=5,
        half_seeds=6,
        depth=3,
        width=2048,
        batch_size=512,
        updates=3_000,
        learning_rate=0.03,
        idle_seconds=0.0,
        depths=(2, 3, 6),
        lengths=(2_000, 4_000, 8_000, 16_000),
        short_lengths=(250, 500, 1_000),
        activations=("relu", "tanh", "gelu", "elu"),
        rates=(0.001, 0.01, 0.1, 0.5),
        batches=(32, 128, 512, 1024),
        examples=1_000_000,
        sgd_rates=(0.01, 0.03, 0.1),
        adam_rates=(0.0001, 0.0003, 0.001),
        target=0.5,
        setups=(
            ("mlp", 2, 1024, 512),
            ("mlp", 2, 4096, 512),
            ("mlp", 6, 2048, 256),
            ("cnn", 4, 32, 512),
            ("cnn", 6, 64, 256),
            ("resnet", 8, 16, 512),
            ("vit", 4, 128, 256),
            ("mixer", 4, 128, 512),
        ),
        setup_updates=1_000,
        widths=(64, 128, 256),
        computations=(1e12, 3e12, 9e12),
    ),
    "full": Scale(
        seeds=10,
        target_seeds=10,
        half_seeds=10,
        depth=4,
        width=1024,
        batch_size=256,
        updates=10_000,
        learning_rate=0.03,
        idle_seconds=2.0,
        depths=(2, 4, 8, 16),
        lengths=(1_000, 2_000, 4_000, 8_000, 16_000),
        short_lengths=(100, 200, 400),
        activations=("relu", "leaky_relu", "elu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"),
        rates=(0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
        batches=(16, 32, 64, 128, 256, 512, 1024),
        examples=2_000_000,
        sgd_rates=(0.003, 0.01, 0.03, 0.1, 0.3),
        adam_rates=(0.0001, 0.0003, 0.001, 0.003, 0.01),
        target=0.5,
        setups=(
            ("mlp", 2, 256, 256),
            ("mlp", 2, 1024, 256),
            ("mlp", 4, 2048, 256),
            ("cnn", 4, 32, 128),
            ("cnn", 6, 64, 256),
            ("resnet", 8, 16, 128),
            ("resnet", 20, 16, 256),
            ("mobilenet", 8, 32, 128),
            ("convnext", 6, 32, 128),
            ("vit", 6, 128, 128),
            ("vit", 12, 192, 256),
            ("mixer", 6, 128, 128),
        ),
        setup_updates=2_000,
        widths=(64, 128, 256, 512),
        computations=(1e12, 3e12, 9e12),
    ),
}

# What differs for texts: sequences are the examples, a transformer the base network.
_ON_TEXT_BASE: dict[str, Any] = {
    "model": "transformer_lm",
    "measure": "bits_per_character",
    "clip_norm": 1.0,
}
_ON_TEXT: dict[str, dict[str, Any]] = {
    "smoke": _ON_TEXT_BASE
    | {
        "batch_size": 8,
        "updates": 8,
        "depths": (1, 2),
        "lengths": (8, 16),
        "short_lengths": (4,),
        "batches": (8,),
        "examples": 64,
        "least_updates": 8,
        "target": 7.5,
        "looks": 4,
        "setups": (("transformer_lm", 1, 16, 8), ("lstm", 1, 16, 8)),
        "setup_updates": 8,
    },
    "small": _ON_TEXT_BASE
    | {
        "depth": 2,
        "width": 64,
        "batch_size": 16,
        "updates": 60,
        "learning_rate": 0.1,
        "depths": (1, 2, 4),
        "lengths": (40, 80, 160, 320),
        "short_lengths": (5, 10, 20),
        "rates": (0.003, 0.03, 0.1, 0.5),
        "batches": (4, 8, 16, 32),
        "examples": 6_400,
        "sgd_rates": (0.03, 0.1, 0.3),
        "adam_rates": (0.001, 0.003, 0.01),
        "target": 3.5,
        "looks": 40,
        "setups": (
            ("transformer_lm", 1, 64, 16),
            ("transformer_lm", 2, 32, 16),
            ("transformer_lm", 2, 64, 8),
            ("transformer_lm", 4, 96, 8),
            ("lstm", 1, 64, 16),
            ("lstm", 1, 128, 8),
            ("lstm", 2, 96, 16),
        ),
        "setup_updates": 40,
    },
    "gpu": _ON_TEXT_BASE
    | {
        "depth": 4,
        "width": 256,
        "batch_size": 64,
        "batches": (16, 32, 64, 128),
        "target": 2.0,
        "looks": 100,
        "sgd_rates": (0.03, 0.1, 0.3),
        "adam_rates": (0.0003, 0.001, 0.003),
        "setups": (
            ("transformer_lm", 2, 128, 64),
            ("transformer_lm", 4, 256, 64),
            ("transformer_lm", 6, 384, 64),
            ("transformer_lm", 8, 512, 32),
            ("lstm", 1, 256, 64),
            ("lstm", 1, 512, 64),
            ("lstm", 2, 512, 64),
            ("lstm", 2, 1024, 32),
        ),
    },
    "full": _ON_TEXT_BASE
    | {
        "depth": 4,
        "width": 128,
        "batch_size": 64,
        "batches": (8, 16, 32, 64, 128, 256),
        "target": 2.0,
        "looks": 100,
        "sgd_rates": (0.01, 0.03, 0.1, 0.3),
        "setups": (
            ("transformer_lm", 2, 64, 64),
            ("transformer_lm", 4, 128, 64),
            ("transformer_lm", 6, 192, 64),
            ("transformer_lm", 6, 384, 32),
            ("transformer_lm", 8, 256, 32),
            ("lstm", 1, 128, 64),
            ("lstm", 1, 256, 64),
            ("lstm", 2, 256, 64),
            ("lstm", 2, 512, 32),
        ),
    },
}

# What differs for control tasks: batches that divide the 512 transitions of an iteration.
_ON_CONTROL_BASE: dict[str, Any] = {
    "measure": "return",
    "clip_norm": 0.5,
    "batches": (16, 64, 256, 512),
}
_ON_CONTROL: dict[str, dict[str, Any]] = {
    "smoke": _ON_CONTROL_BASE
    | {"batches": (64,), "setups": (("mlp", 1, 16, 64), ("mlp", 2, 16, 64)), "looks": 4},
    "small": _ON_CONTROL_BASE
    | {
        "depth": 2,
        "width": 64,
        "updates": 800,
        "learning_rate": 0.03,
        "lengths": (400, 800, 1600, 3200),
        "short_lengths": (80, 160),
        "rates": (0.003, 0.01, 0.03, 0.1),
        "examples": 400_000,
        "sgd_rates": (0.01, 0.03, 0.1),
        "adam_rates": (0.001, 0.003, 0.01),
        "looks": 100,
        "setups": (
            ("mlp", 1, 32, 128),
            ("mlp", 2, 64, 128),
            ("mlp", 2, 256, 128),
            ("mlp", 4, 64, 64),
            ("mlp", 4, 256, 256),
            ("mlp", 2, 512, 512),
        ),
        "setup_updates": 800,
    },
}
for _budget in ("gpu", "full"):
    _ON_CONTROL[_budget] = _ON_CONTROL["small"] | {"examples": 2_000_000, "looks": 200}
# At which a task counts as solved in Gym's registry; less where there is no time for that.
_RETURNS = {
    "cartpole": {"smoke": 15.0, "small": 195.0, "gpu": 475.0, "full": 475.0},
    "acrobot": {"smoke": -400.0, "small": -120.0, "gpu": -100.0, "full": -100.0},
}

_CIFAR10_PART = "cifar10:examples=5000"


def _inputs(dataset: str) -> int:
    """The numbers of an example, for a multi-layer perceptron's count of parameters."""
    key = dataset.partition(":")[0]
    known = {"digits": 64, "mnist": 784, "fashion_mnist": 784, "cartpole": 4, "acrobot": 6}
    return known.get(key, 3072)


def _outputs(dataset: str) -> int:
    """A perceptron's outputs: classes, or the actions of a task and its value."""
    return {"cartpole": 3, "acrobot": 4}.get(dataset.partition(":")[0], 10)


def count_parameters(depth: int, width: int, inputs: int, classes: int = 10) -> int:
    """Parameters of a multi-layer perceptron with biases."""
    return (inputs + 1) * width + (depth - 1) * (width + 1) * width + (width + 1) * classes


def width_for(depth: int, parameters: int, inputs: int, classes: int = 10) -> int:
    """The width at which a perceptron of a depth comes closest to a number of parameters."""
    low, high = 1, 1
    while count_parameters(depth, high, inputs, classes) < parameters:
        low, high = high, 2 * high
    candidates = range(low, high + 1)
    return min(
        candidates, key=lambda w: abs(count_parameters(depth, w, inputs, classes) - parameters)
    )


def depth(context: Context) -> list[RunConfig]:
    """Perceptrons of several depths, at the base width and at the base's number of parameters.

    Transformers only at the base width: their widths go by heads, too coarse for the second.
    """
    scale = context.scale
    shapes = [(d, scale.width) for d in scale.depths]
    if scale.model == "mlp":
        sides = _inputs(context.main_dataset), _outputs(context.main_dataset)
        parameters = count_parameters(scale.depth, scale.width, *sides)
        shapes += [(d, width_for(d, parameters, *sides)) for d in scale.depths]
    return unique(
        context.run(depth=d, width=w, seed=seed) for seed in context.seeded() for d, w in shapes
    )


def activation(context: Context) -> list[RunConfig]:
    """The base network with several activations, until the accuracy."""
    return unique(
        context.run(activation=name, seed=seed, **_to_target(context))
        for seed in context.seeded(context.scale.target_seeds)
        for name in context.scale.activations
    )


def optimizer(context: Context) -> list[RunConfig]:
    """SGD and Adam at several learning rates each, until the accuracy."""
    scale = context.scale
    tries = [("sgd", rate) for rate in scale.sgd_rates]
    tries += [("adam", rate) for rate in scale.adam_rates]
    return unique(
        context.run(optimizer=name, learning_rate=rate, seed=seed, **_to_target(context))
        for seed in context.seeded(context.scale.target_seeds)
        for name, rate in tries
    )


def _to_target(context: Context) -> dict[str, Any]:
    """The base run until the accuracy."""
    return _until_accuracy(context, context.scale.batch_size)


def _until_accuracy(context: Context, batch_size: int) -> dict[str, Any]:
    """A run that ends at the accuracy, which is looked at often enough to see when that is."""
    most = max(context.scale.least_updates, context.scale.examples // batch_size)
    return {
        "updates": most,
        "eval_every": max(1, most // context.scale.looks),
        f"target_{context.scale.measure}": context.scale.target,
    }


def iterations(context: Context) -> list[RunConfig]:
    """Independent runs of the base network of several lengths."""
    return unique(
        context.run(updates=updates, seed=seed)
        for seed in context.seeded()
        for updates in context.scale.lengths
    )


def setups(context: Context) -> list[RunConfig]:
    """Set-ups of several families and sizes.

    The learning rate is a little different from seed to seed, which makes another program: each is
    compiled, so that the study `compile` has repetitions.
    """
    scale = context.scale
    runs = []
    for seed in context.seeded():
        common = {
            "updates": scale.setup_updates,
            "seed": seed,
            "learning_rate": round(0.01 * (1 + seed / 1000), 6),
        }
        for model, depth, width, batch_size in scale.setups:
            runs.append(
                context.run(model=model, depth=depth, width=width, batch_size=batch_size, **common)
            )
        if context.data_dir and context.main_dataset == "digits":
            for model, depth, width, batch_size in scale.cifar10:
                runs.append(
                    context.run(
                        model=model,
                        depth=depth,
                        width=width,
                        batch_size=batch_size,
                        dataset=_CIFAR10_PART,
                        **common,
                    )
                )
    return unique(runs)


def rates_and_batches(context: Context) -> list[RunConfig]:
    """The grid of learning rates and batch sizes, each run until the accuracy.

    All may see as many examples.
    """
    scale = context.scale
    runs = []
    for seed in context.seeded(scale.half_seeds):
        for batch_size in scale.batches:
            for rate in scale.rates:
                runs.append(
                    context.run(
                        batch_size=batch_size,
                        learning_rate=rate,
                        seed=seed,
                        **_until_accuracy(context, batch_size),
                    )
                )
    return unique(runs)


def tradeoff(context: Context) -> list[RunConfig]:
    """Short and long, small and large: beside its own the runs of `iterations` and of `depth`."""
    short = [
        context.run(updates=updates, seed=seed)
        for seed in context.seeded()
        for updates in context.scale.short_lengths
    ]
    return unique([*short, *iterations(context), *depth(context)])


# Several tasks -----------------------------------------------------------------------------------

_TASKS = "digits:tasks=class+parity"
_DIGITS_TARGET = 0.97


def multitask(context: Context) -> list[RunConfig]:
    """A network of all tasks and one of each, at several learning rates, until the accuracy.

    Raises:
        UsageError: the data set is no image set, whose classes have several readings.
    """
    if kind_of(context.main_dataset) != "image":
        raise UsageError(
            f"--dataset={context.main_dataset}: the study multitask reads classes in several ways."
            "\nAllowed: image sets."
        )
    dataset, to_target = _several_tasks(context), _to_target(context)
    if dataset.startswith("digits") and context.budget != "smoke":
        to_target["target_accuracy"] = _DIGITS_TARGET
    return unique(
        context.run(dataset=name, learning_rate=rate, seed=seed, **to_target)
        for seed in context.seeded(context.scale.target_seeds)
        for name in (dataset, *single_task_names(dataset))
        for rate in context.scale.sgd_rates
    )


def _several_tasks(context: Context) -> str:
    """The data set of several tasks: the one asked for, all tasks of that, or the digits'."""
    asked = context.dataset or ""
    if len(task_names(asked)) > 1:
        return asked
    name, _, options = asked.partition(":")
    readings = readings_of(name)
    if len(readings) < 2 or "tasks=" in options or "classes=" in options:
        return _TASKS
    return f"{name}:" + ",".join(filter(None, (options, f"tasks={'+'.join(readings)}")))


# Equal computation -------------------------------------------------------------------------------

_TEXT = "stdlib:length=64"
_LONG_TEXT = f"{_TEXT},characters=8000000"  # all of it, for longer trainings
_TEXT_BATCH = 16
_IMAGE_WIDTHS = 8  # times those of a transformer make as long trainings of a perceptron
# Operations of norms, softmax and the like per feature of a block and character, as XLA counts.
_ELEMENTWISE = 215


def compute(context: Context) -> list[RunConfig]:
    """Widths and numbers of updates of equal computation: a transformer on text.

    With an image set it is a perceptron on images. Loss is looked at at the end alone.

    Raises:
        UsageError: the data set is a control task.
    """
    if kind_of(context.main_dataset) == "control":
        raise UsageError(
            f"--dataset={context.main_dataset}: the study compute looks at the loss, which "
            "tells no progress on a control task.\nAllowed: data sets of images or text."
        )
    own = _LONG_TEXT if context.budget in ("gpu", "full") else _TEXT
    dataset = context.dataset or own
    settings: dict[str, Any] = {"depth": 2, "dataset": dataset, "schedule": "cosine"}
    if dataset.partition(":")[0] in ("stdlib", "text"):
        settings |= {"model": "transformer_lm", "batch_size": _TEXT_BATCH}
        settings |= {"optimizer": "adam", "learning_rate": 0.003}
        widths = context.scale.widths
    else:
        widths = [_IMAGE_WIDTHS * width for width in context.scale.widths]
    runs = []
    for seed in context.seeded():
        for computation in context.scale.computations:
            for width in widths:
                shape = context.run(width=width, seed=seed, **settings)
                updates = max(1, round(computation / count_flops(shape)))
                runs.append(dataclasses.replace(shape, updates=updates, eval_every=updates))
    return unique(runs)


def count_flops(config: RunConfig, kinds: int = 96) -> float:
    """Floating point operations of an update of a perceptron or of a transformer on characters.

    Backward passes take twice those of forward ones, but for the gradient by the images.

    Args:
        config: the run; its depth and width are given.
        kinds: of characters, or classes.
    """
    depth, width = config.depth or 1, config.width or 1
    if config.model == "transformer_lm":
        given = re.search(r"length=(\d+)", config.dataset)
        length = int(given[1]) if given else 128  # which is the text sets' own
        block = 24 * width**2 + 4 * length * width
        each = 3 * (depth * block + 2 * width * kinds) + _ELEMENTWISE * depth * width
        return float(config.batch_size * length * each)
    inputs = _inputs(config.dataset) * width
    products = inputs + (depth - 1) * width**2 + 10 * width
    return float(2 * config.batch_size * (3 * products - inputs))


def unique(configs: Iterable[RunConfig]) -> list[RunConfig]:
    """Each run once, in the order of first appearance."""
    return list({config.id: config for config in configs}.values())
