"""The families of networks in PyTorch: each takes what its Flax module takes, and is built like it.

Dropout and stochastic depth are absent: they draw random numbers, which no two frameworks share.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jaxenergy.models import Model
from jaxenergy.models.attention import head_count
from jaxenergy.models.family import patch_side
from jaxenergy.models.layers import deal
from jaxenergy.models.resnet import BOTTLENECK_EXPANSION, STAGES, depth_rule
from jaxenergy.models.wide_resnet import DEPTH_RULE, STEM_CHANNELS
from jaxenergy.torch_twin.activations import ACTIVATIONS
from jaxenergy.torch_twin.layers import (
    Activate,
    Block,
    FeedForward,
    conv,
    mean_over_positions,
    patches,
)

_STAGES = 3  # of cnn, mobilenet and convnext
_EXPANSION = 4  # of feed-forward layers


def build_network(model: Model) -> nn.Module:
    """The PyTorch module of a model, with weights of its own.

    Args:
        model: the network as Flax has it.

    Returns:
        A module from images [batch, height, width, channels] to logits [batch, classes], or from
        tokens [batch, length] to logits [batch, length, classes].
    """
    network = FAMILIES[model.family](model, ACTIVATIONS[model.activation])
    return network.to(memory_format=torch.channels_last)


class MLP(Block):
    """Hidden layers, each followed by norm and activation."""

    def __init__(self, model: Model, activate: Activate) -> None:
        super().__init__()
        norm = dict(model.options)["norm"]
        height, width, channels = model.input_shape
        features = height * width * channels
        self.activate = activate
        self.layers, self.norms = nn.ModuleList(), nn.ModuleList()
        for _ in range(model.depth):
            self.layers.append(self.named(nn.Linear(features, model.width, bias=norm == "none")))
            self.norms.append(self.norm(norm, model.width, of_images=False))
            features = model.width
        self.classify = self.named(nn.Linear(features, model.classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, height, width, channels]."""
        x = images.flatten(1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = self.activate(norm(layer(x)))
        return self.classify(x)


class CNN(Block):
    """3 x 3 convolutions with norm and activation in three stages, each ended by pooling."""

    def __init__(self, model: Model, activate: Activate) -> None:
        super().__init__()
        options = dict(model.options)
        norm = options["norm"]
        self.activate = activate
        self.pool = F.max_pool2d if options["pool"] == "max" else F.avg_pool2d
        self.stages = nn.ModuleList()
        channels = model.input_shape[-1]
        for stage, convolutions in enumerate(deal(model.depth, _STAGES)):
            layers = nn.ModuleList()
            for _ in range(convolutions):
                features = model.width << stage
                use_bias = norm == "none"
                layers.append(self.named(conv(channels, features, 3, use_bias=use_bias)))
                layers.append(self.norm(norm, features, of_images=True))
                channels = features
            self.stages.append(layers)
        self.classify = self.named(nn.Linear(channels, model.classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, height, width, channels]."""
        x = images.permute(0, 3, 1, 2)
        for layers in self.stages:
            for convolution, norm in zip(layers[::2], layers[1::2], strict=True):
                x = self.activate(norm(convolution(x)))
            if min(x.shape[2:]) >= 2:
                x = self.pool(x, 2)
        return self.classify(mean_over_positions(x))


class ResidualBlock(Block):
    """Convolutions around which a shortcut leads, in version 1 or 2."""

    def __init__(
        self,
        channels: int,
        width: int,
        strides: int,
        version: str,
        bottleneck: bool,
        activate: Activate,
        norm: str,
    ) -> None:
        super().__init__()
        convolutions = [(width, 3, strides), (width, 3, 1)]
        if bottleneck:
            expanded = width * BOTTLENECK_EXPANSION
            convolutions = [(width, 1, 1), (width, 3, strides), (expanded, 1, 1)]
        use_bias = norm == "none"
        self.features = convolutions[-1][0]
        self.activate = activate
        self.version = version
        self.shortcut = self.shortcut_norm = None
        if strides != 1 or channels != self.features:
            self.shortcut = self.named(
                conv(channels, self.features, 1, strides=strides, use_bias=use_bias), "shortcut"
            )
            if version == "v1":
                self.shortcut_norm = self.norm(norm, self.features, of_images=True)
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        for features, size, stride in convolutions:
            layer = conv(channels, features, size, strides=stride, use_bias=use_bias)
            self.convolutions.append(self.named(layer))
            normalised = features if version == "v1" else channels
            self.norms.append(self.norm(norm, normalised, of_images=True))
            channels = features

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, in, height, width] to [batch, out, height / strides, width / strides]."""
        return self._version_1(x) if self.version == "v1" else self._version_2(x)

    def _version_1(self, x: Tensor) -> Tensor:
        shortcut = y = x
        if self.shortcut is not None and self.shortcut_norm is not None:
            shortcut = self.shortcut_norm(self.shortcut(x))
        last = len(self.convolutions) - 1
        for index, (convolution, norm) in enumerate(
            zip(self.convolutions, self.norms, strict=True)
        ):
            y = norm(convolution(y))
            if index != last:
                y = self.activate(y)
        return self.activate(shortcut + y)

    def _version_2(self, x: Tensor) -> Tensor:
        shortcut = y = x
        for index, (convolution, norm) in enumerate(
            zip(self.convolutions, self.norms, strict=True)
        ):
            y = self.activate(norm(y))
            if index == 0 and self.shortcut is not None:
                shortcut = self.shortcut(y)
            y = convolution(y)
        return shortcut + y


class ResNet(Block):
    """Stem, three stages of residual blocks, mean, classifier: ResNets and wide ResNets."""

    def __init__(
        self,
        model: Model,
        activate: Activate,
        *,
        stem: int,
        width: int,
        blocks: int,
        version: str,
        bottleneck: bool,
    ) -> None:
        super().__init__()
        norm = dict(model.options)["norm"]
        self.activate = activate
        self.stem = self.named(conv(model.input_shape[-1], stem, 3, use_bias=norm == "none"))
        self.first_norm = self.norm(norm, stem, of_images=True) if version == "v1" else None
        self.blocks = nn.ModuleList()
        channels = stem
        for stage in range(STAGES):
            for index in range(blocks):
                strides = 2 if stage > 0 and index == 0 else 1
                block = ResidualBlock(
                    channels, width << stage, strides, version, bottleneck, activate, norm
                )
                self.blocks.append(self.named(block))
                channels = block.features
        self.last_norm = self.norm(norm, channels, of_images=True) if version == "v2" else None
        self.classify = self.named(nn.Linear(channels, model.classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, height, width, channels]."""
        x = self.stem(images.permute(0, 3, 1, 2))
        if self.first_norm is not None:
            x = self.activate(self.first_norm(x))
        for block in self.blocks:
            x = block(x)
        if self.last_norm is not None:
            x = self.activate(self.last_norm(x))
        return self.classify(mean_over_positions(x))


def _resnet(model: Model, activate: Activate) -> nn.Module:
    options = dict(model.options)
    return ResNet(
        model,
        activate,
        stem=model.width,
        width=model.width,
        blocks=depth_rule(options).blocks(model.depth),
        version=options["version"],
        bottleneck=options["block"] == "bottleneck",
    )


def _wide_resnet(model: Model, activate: Activate) -> nn.Module:
    return ResNet(
        model,
        activate,
        stem=STEM_CHANNELS,
        width=STEM_CHANNELS * model.width,
        blocks=DEPTH_RULE.blocks(model.depth),
        version="v2",
        bottleneck=False,
    )


class MobileNet(Block):
    """A 3 x 3 stem, then depthwise separable blocks in three stages."""

    def __init__(self, model: Model, activate: Activate) -> None:
        super().__init__()
        self.activate = activate
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        channels = self._add(model, model.input_shape[-1], model.width, 3)
        for stage, blocks in enumerate(deal(model.depth, _STAGES)):
            for block in range(blocks):
                strides = 2 if stage > 0 and block == 0 else 1
                channels = self._add(model, channels, channels, 3, strides, groups=channels)
                channels = self._add(model, channels, model.width << stage + 1, 1)
        self.classify = self.named(nn.Linear(channels, model.classes))

    def _add(
        self, model: Model, channels: int, features: int, size: int, strides: int = 1, groups=1
    ) -> int:
        norm = dict(model.options)["norm"]
        layer = conv(
            channels, features, size, strides=strides, groups=groups, use_bias=norm == "none"
        )
        self.convolutions.append(self.named(layer))
        self.norms.append(self.norm(norm, features, of_images=True))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, height, width, channels]."""
        x = images.permute(0, 3, 1, 2)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = self.activate(norm(convolution(x)))
        return self.classify(mean_over_positions(x))


class ConvNeXtBlock(Block):
    """7 x 7 depthwise convolution, norm, feed-forward layer and scale, added to its input."""

    def __init__(self, channels: int, activate: Activate, norm: str) -> None:
        super().__init__()
        self.depthwise = self.named(conv(channels, channels, 7, groups=channels, use_bias=True))
        self.normalise = self.norm(norm, channels, of_images=True)
        self.feed_forward = self.named(FeedForward(channels, _EXPANSION * channels, activate))
        self.scale = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, channels, height, width] to the same."""
        y = self.normalise(self.depthwise(x)).permute(0, 2, 3, 1)
        return x + (self.feed_forward(y) * self.scale).permute(0, 3, 1, 2)


class ConvNeXt(Block):
    """ConvNeXt blocks in three stages, each begun by a convolution over 2 x 2 patches."""

    def __init__(self, model: Model, activate: Activate) -> None:
        super().__init__()
        norm = dict(model.options)["norm"]
        self.layers = nn.ModuleList()
        channels = model.input_shape[-1]
        for stage, blocks in enumerate(deal(model.depth, _STAGES)):
            features = model.width << stage
            if stage > 0:
                self.layers.append(self.norm(norm, channels, of_images=True))
            cut = conv(channels, features, 2, strides=2, use_bias=True)
            self.layers.append(self.named(cut))
            if stage == 0:
                self.layers.append(self.norm(norm, features, of_images=True))
            for _ in range(blocks):
                self.layers.append(self.named(ConvNeXtBlock(features, activate, norm)))
            channels = features
        self.last_norm = self.norm(norm, channels, of_images=False)
        self.classify = self.named(nn.Linear(channels, model.classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, height, width, channels]."""
        x = images.permute(0, 3, 1, 2)
        for layer in self.layers:
            x = layer(x)
        return self.classify(self.last_norm(mean_over_positions(x)))


class TransformerBlock(Block):
    """Attention and a feed-forward layer, each behind a norm and added to its input."""

    def __init__(
        self, features: int, heads: int, activate: Activate, norm: str, causal: bool
    ) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.first_norm = self.norm(norm, features, of_images=False)
        self.project = self.named(nn.Linear(features, 3 * features))
        self.gather = self.named(nn.Linear(features, features))
        self.second_norm = self.norm(norm, features, of_images=False)
        self.feed_forward = self.named(FeedForward(features, _EXPANSION * features, activate))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, length, features] to the same."""
        batch, length, features = x.shape
        projected = self.project(self.first_norm(x)).view(batch, length, 3, self.heads, -1)
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.gather(y.transpose(1, 2).reshape(batch, length, features))
        return x + self.feed_forward(self.second_norm(x))


class Transformer(Block):
    """Transformer blocks over patches of an image, or over tokens, with learned positions."""

    def __init__(self, model: Model, activate: Activate) -> None:
        super().__init__()
        options = dict(model.options)
        norm = options["norm"]
        self.of_tokens = model.family == "transformer_lm"
        if self.of_tokens:
            (positions,) = model.input_shape
            self.embed = self.named(nn.Embedding(model.classes, model.width))
        else:
            height, width, channels = model.input_shape
            self.side = patch_side(model.input_shape, options["patch_size"])
            positions = height // self.side * (width // self.side)
            self.embed = self.named(nn.Linear(self.side * self.side * channels, model.width))
        self.position = nn.Parameter(torch.empty(positions, model.width))
        heads = head_count(model.width, options["heads"])
        self.blocks = nn.ModuleList(
            self.named(TransformerBlock(model.width, heads, activate, norm, self.of_tokens))
            for _ in range(model.depth)
        )
        self.last_norm = self.norm(norm, model.width, of_images=False)
        self.classify = self.named(nn.Linear(model.width, model.classes))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of tokens at each position, or of images from the mean over positions."""
        x = self.embed(inputs if self.of_tokens else patches(inputs, self.side)) + self.position
        for block in self.blocks:
            x = block(x)
        x = self.last_norm(x)
        return self.classify(x if self.of_tokens else x.mean(1))


class MixerBlock(Block):
    """Not a module in Flax, where its layers belong to the network: it has no name either."""

    def __init__(
        self, network: "Mixer", width: int, positions: int, activate: Activate, norm: str
    ) -> None:
        super().__init__()
        hidden = max(width // 2, 1)
        self.first_norm = network.norm(norm, width, of_images=False)
        self.across_positions = network.named(FeedForward(positions, hidden, activate))
        self.second_norm = network.norm(norm, width, of_images=False)
        self.across_channels = network.named(FeedForward(width, _EXPANSION * width, activate))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, positions, channels] to the same."""
        y = self.across_positions(self.first_norm(x).transpose(1, 2))
        x = x + y.transpose(1, 2)
        return x + self.across_channels(self.second_norm(x))


class Mixer(Block):
    """Perceptrons across patches and across channels in turn."""

    def __init__(self, model: Model, activate: Activate) -> None:
        super().__init__()
        options = dict(model.options)
        height, width, channels = model.input_shape
        self.side = patch_side(model.input_shape, options["patch_size"])
        positions = height // self.side * (width // self.side)
        self.embed = self.named(nn.Linear(self.side * self.side * channels, model.width))
        self.blocks = nn.ModuleList(
            MixerBlock(self, model.width, positions, activate, options["norm"])
            for _ in range(model.depth)
        )
        self.last_norm = self.norm(options["norm"], model.width, of_images=False)
        self.classify = self.named(nn.Linear(model.width, model.classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, classes] of images [batch, height, width, channels]."""
        x = self.embed(patches(images, self.side))
        for block in self.blocks:
            x = block(x)
        return self.classify(self.last_norm(x).mean(1))


class LSTMLayer(Block):
    """One recurrent layer with any activation, one position after the other."""

    def __init__(self, features: int, width: int, activate: Activate) -> None:
        super().__init__()
        self.activate = activate
        self.from_inputs = self.named(nn.Linear(features, 4 * width))
        self.recurrent = nn.Parameter(torch.empty(width, 4 * width))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, length, n] to [batch, length, width]."""
        cell = hidden = x.new_zeros(len(x), len(self.recurrent))
        outputs = []
        for from_input in self.from_inputs(x).unbind(1):
            gates = torch.addmm(from_input, hidden, self.recurrent)
            into, forget, out, candidate = gates.chunk(4, -1)
            kept = torch.sigmoid(forget + 1) * cell
            cell = kept + torch.sigmoid(into) * self.activate(candidate)
            hidden = torch.sigmoid(out) * self.activate(cell)
            outputs.append(hidden)
        return torch.stack(outputs, 1)


class TanhLSTMLayer(nn.LSTM):
    """The same with tanh: PyTorch's own, whose gates come in another order and with two biases.

    The forget gate's extra bias of one is the second bias, which is not trained.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__(features, width, batch_first=True)
        second_bias = torch.zeros(4, width)
        second_bias[1] = 1.0
        self.bias_hh_l0 = nn.Parameter(second_bias.flatten(), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """Maps [batch, length, n] to [batch, length, width]."""
        return super().forward(input)[0]


class LSTM(Block):
    """An embedding, recurrent layers, a prediction at each position."""

    def __init__(self, model: Model, activate: Activate) -> None:
        super().__init__()
        self.embed = self.named(nn.Embedding(model.classes, model.width))
        self.layers = nn.ModuleList()
        for index in range(model.depth):
            if model.activation == "tanh":
                layer = TanhLSTMLayer(model.width, model.width)
            else:
                layer = LSTMLayer(model.width, model.width, activate)
            self.layers.append(self.named(layer, f"LSTMLayer_{index}"))
        self.classify = self.named(nn.Linear(model.width, model.classes))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [batch, length, classes] of tokens [batch, length]."""
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.classify(x)


FAMILIES: Mapping[str, Callable[[Model, Activate], nn.Module]] = {
    "mlp": MLP,
    "cnn": CNN,
    "resnet": _resnet,
    "wide_resnet": _wide_resnet,
    "mobilenet": MobileNet,
    "convnext": ConvNeXt,
    "vit": Transformer,
    "mixer": Mixer,
    "transformer_lm": Transformer,
    "lstm": LSTM,
}
