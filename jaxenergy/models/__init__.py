"""The networks, built by name: `build` is the only door to Flax, and `Model` is all others see.

Behind it each family is one file: a Flax Linen module and a `Family` that says its defaults, its
options and the depths it has. Linen, since its modules are hashable by value and its `apply` is
pure: object-graph work at each update would be charged to the optimizer.
"""

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxenergy.activations import ACTIVATIONS
from jaxenergy.arguments import read_arguments
from jaxenergy.errors import UsageError, unknown_value
from jaxenergy.models import (
    cnn,
    convnext,
    forms,
    lstm,
    mixer,
    mlp,
    mobilenet,
    resnet,
    transformer_lm,
    vit,
    wide_resnet,
)
from jaxenergy.models.family import Family, Preset
from jaxenergy.registry import Registry

PRECISIONS = ("float32", "bfloat16")

MODELS: Registry[Family] = Registry("--model")
MODELS.add("mlp", mlp.FAMILY, "multi-layer perceptron")
MODELS.add("cnn", cnn.FAMILY, "plain 3 x 3 convolutions with pooling, after VGG")
MODELS.add("resnet", resnet.FAMILY, "residual network, CIFAR form (v1, v2, bottleneck)")
MODELS.add("wide_resnet", wide_resnet.FAMILY, "wide residual network, pre-activation, dropout")
MODELS.add("mobilenet", mobilenet.FAMILY, "depthwise separable convolutions")
MODELS.add("convnext", convnext.FAMILY, "7 x 7 depthwise convolutions and feed-forward layers")
MODELS.add("vit", vit.FAMILY, "vision transformer over image patches")
MODELS.add("mixer", mixer.FAMILY, "MLP-Mixer: perceptrons across patches and across channels")
MODELS.add("transformer_lm", transformer_lm.FAMILY, "causal transformer over tokens")
MODELS.add("lstm", lstm.FAMILY, "long short-term memory over tokens")

PRESETS: Registry[tuple[str, Preset]] = Registry("--model")
for _family in MODELS:
    for _make in MODELS[_family].presets:
        PRESETS.add(_make.__name__, (_family, _make()), inspect.getdoc(_make) or "")


@dataclasses.dataclass(frozen=True)
class Model:
    """A network with its shapes settled; two equal ones compile to the same program.

    Attributes:
        family: the family's name.
        depth: its depth, as the family counts it.
        width: its width, as the family counts it.
        activation: the activation's name.
        options: the family's further options, resolved, as sorted pairs.
        input_shape: shape of one example, (height, width, channels) or (length,).
        classes: number of classes, or of tokens.
        precision: dtype of the computation; parameters and logits are float32.
        dot_only: whether there is no convolution inside.
        recurrent: whether it loops over time inside.
        module: the Flax module.
        forms: names of the forms (`models.forms`) that its layers may take.
    """

    family: str
    depth: int
    width: int
    activation: str
    options: tuple[tuple[str, Any], ...]
    input_shape: tuple[int, ...]
    classes: int
    precision: str
    dot_only: bool
    recurrent: bool
    module: nn.Module
    forms: tuple[str, ...] = ()

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Fresh variables; to be called under jit.

        Args:
            key: PRNG key.

        Returns:
            `params` and, where there is batch normalisation, `batch_stats`; all float32.
        """
        dtype = jnp.int32 if MODELS[self.family].inputs == "tokens" else jnp.float32
        return dict(self.module.init(key, jnp.zeros((1, *self.input_shape), dtype), train=False))

    def apply(
        self, variables: Mapping[str, Any], inputs: jax.Array, *, train: bool, key: Any = None
    ) -> tuple[jax.Array, Any]:
        """The network's logits, as a pure function.

        Args:
            variables: as `init` gives them.
            inputs: float32 [batch, height, width, channels], or int32 [batch, length].
            train: whether dropout drops and batch normalisation uses this batch's statistics.
            key: PRNG key; needed in training where there is dropout or stochastic depth.

        Returns:
            Logits, float32 [batch, classes] or [batch, length, classes], and the new `batch_stats`
            (those given, at evaluation; empty, where there are none).
        """
        rngs = {} if key is None else {"dropout": key}
        with forms.choose(self.forms if train else set(self.forms) - forms.TRAINING_FORMS):
            if train and "batch_stats" in variables:
                logits, updated = self.module.apply(
                    variables, inputs, train=True, rngs=rngs, mutable=["batch_stats"]
                )
                return logits, updated["batch_stats"]
            logits = self.module.apply(variables, inputs, train=train, rngs=rngs)
            return logits, variables.get("batch_stats", {})

    def forms_taken(self, batch_size: int) -> tuple[str, ...]:
        """The forms that its layers take in training on such batches; nothing is computed."""
        if not self.forms:
            return ()
        with forms.choose(()) as taken:
            self._trace(batch_size)
        return tuple(sorted(taken))

    def batch_norm_values(self, batch_size: int) -> dict[str, int]:
        """How many values of a channel each batch norm sees in such a batch; nothing is computed.

        Args:
            batch_size: examples of the batch.

        Returns:
            The numbers by the norms' paths in `params`, with `/` between names.
        """
        found: dict[str, int] = {}

        def note(call: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext):
            if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
                x = args[0]
                found["/".join(context.module.path)] = x.size // x.shape[-1]
            return call(*args, **kwargs)

        with nn.intercept_methods(note):
            self._trace(batch_size)
        return found

    def _trace(self, batch_size: int) -> None:
        """Traces the network in training; no array is made for it."""
        dtype = jnp.int32 if MODELS[self.family].inputs == "tokens" else jnp.float32

        def apply() -> jax.Array:
            key = jax.random.key(0)
            inputs = jnp.zeros((batch_size, *self.input_shape), dtype)
            return self.apply(self.init(key), inputs, train=True, key=key)[0]

        jax.eval_shape(apply)


def build(
    family: str,
    *,
    input_shape: tuple[int, ...],
    classes: int,
    depth: int | None = None,
    width: int | None = None,
    activation: str | None = None,
    precision: str = "float32",
    forms: Collection[str] = (),
    **options: Any,
) -> Model:
    """Builds a network by name.

    Args:
        family: one of `MODELS`, or of `PRESETS`, whose depth, width and options are the defaults
            then.
        input_shape: shape of one example: (height, width, channels), or (length,) for tokens.
        classes: number of classes, or of tokens.
        depth: as the family counts it; None for its default.
        width: as the family counts it; None for its default.
        activation: one of `ACTIVATIONS`; None for the family's default.
        precision: `float32`, or `bfloat16` for computing in it with float32 parameters.
        forms: names of forms that layers may take where they suit (`forms.forms_of(platform)`);
            none of them for plain Flax.
        **options: the family's further options (`MODELS[family].options`), as text or typed.

    Returns:
        The model.

    Raises:
        UsageError: something unknown, or a combination the family does not have.
    """
    if family in PRESETS:
        family, preset = PRESETS[family]
        depth = preset.depth if depth is None else depth
        width = preset.width if width is None else width
        activation = activation or preset.activation
        options = {**preset.options, **options}
    elif family not in MODELS:
        raise unknown_value("--model", family, [*MODELS, *PRESETS])
    entry = MODELS[family]
    activation = activation or entry.activation
    activate = ACTIVATIONS[activation]
    if precision not in PRECISIONS:
        raise unknown_value("--precision", precision, PRECISIONS)
    axes = {"image": 3, "tokens": 1}
    if len(input_shape) != axes[entry.inputs]:
        wanted = {
            "image": "images (height, width, channels)",
            "tokens": "token sequences (length,)",
        }
        fitting = [name for name in MODELS if axes[MODELS[name].inputs] == len(input_shape)]
        raise UsageError(
            f"--model={family} takes {wanted[entry.inputs]}; examples here are {input_shape}.\n"
            f"Allowed for these: {', '.join(fitting) or 'no family'}."
        )
    resolved = read_arguments(options, entry.options, f"--model={family}")
    depth = entry.depth if depth is None else depth
    width = entry.width if width is None else width
    entry.depth_rule(resolved).check(depth, family)
    if width < 1:
        raise UsageError(
            f"--width={width} is not possible for --model={family}: it counts"
            f" {entry.width_counts} and is at least 1."
        )
    entry.check(width, resolved, tuple(input_shape))
    module = entry.module(
        depth=depth,
        width=width,
        activation=activate,
        classes=classes,
        dtype=jnp.dtype(precision),
        **resolved,
    )
    return Model(
        family=family,
        depth=depth,
        width=width,
        activation=activation,
        options=tuple(sorted(resolved.items())),
        input_shape=tuple(input_shape),
        classes=classes,
        precision=precision,
        dot_only=entry.dot_only,
        recurrent=entry.recurrent,
        module=module,
        forms=tuple(forms),
    )
