"""The same training in two frameworks: held against each other in float64, layer by layer."""

import dataclasses
import itertools
import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxenergy import data, models, optimizers
from jaxenergy.activations import ACTIVATIONS
from jaxenergy.errors import RunError, UsageError
from jaxenergy.models import MODELS
from jaxenergy.training import steps

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

from jaxenergy import torch_twin  # noqa: E402
from jaxenergy.torch_twin import layers, parity, process, transplant  # noqa: E402
from jaxenergy.torch_twin import optimizers as twins  # noqa: E402
from jaxenergy.torch_twin.lbfgs import LBFGS, zoom  # noqa: E402
from jaxenergy.torch_twin.models import build_network  # noqa: E402
from jaxenergy.torch_twin.rprop import Rprop  # noqa: E402

# A small network of each family, and the forms of it that differ in more than numbers.
CASES = {
    "mlp": ("mlp", {"depth": 2, "width": 8}),
    "mlp-batch": ("mlp", {"depth": 2, "width": 8, "norm": "batch"}),
    "mlp-layer": ("mlp", {"depth": 1, "width": 8, "norm": "layer"}),
    "cnn": ("cnn", {"depth": 3, "width": 4}),
    "cnn-none-mean": ("cnn", {"depth": 2, "width": 4, "norm": "none", "pool": "mean"}),
    "cnn-group": ("cnn", {"depth": 2, "width": 32, "norm": "group"}),
    "resnet": ("resnet", {"depth": 8, "width": 4}),
    "resnet-v2": ("resnet", {"depth": 8, "width": 4, "version": "v2", "norm": "layer"}),
    "resnet-none": ("resnet", {"depth": 8, "width": 4, "norm": "none"}),
    "resnet-bottleneck": ("resnet", {"depth": 11, "width": 4, "block": "bottleneck"}),
    "wide_resnet": ("wide_resnet", {"depth": 10, "width": 1}),
    "mobilenet": ("mobilenet", {"depth": 4, "width": 4}),
    "convnext": ("convnext", {"depth": 3, "width": 4}),
    "convnext-group": ("convnext", {"depth": 2, "width": 16, "norm": "group"}),
    "convnext-batch": ("convnext", {"depth": 2, "width": 4, "norm": "batch"}),
    "vit": ("vit", {"depth": 2, "width": 16, "heads": 2}),
    "vit-none": ("vit", {"depth": 1, "width": 16, "norm": "none"}),
    "mixer": ("mixer", {"depth": 2, "width": 8}),
    "transformer_lm": ("transformer_lm", {"depth": 2, "width": 16, "heads": 2}),
    "lstm": ("lstm", {"depth": 2, "width": 8}),
    "lstm-relu": ("lstm", {"depth": 1, "width": 8, "activation": "relu"}),
}
ODD_SIZED = ("resnet-v2", "convnext-batch", "cnn-group")


@pytest.fixture(autouse=True)
def _one_thread():
    """Networks this small lose by a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_program(case="mlp", optimizer="sgd", args=None, *, batch_size=8, more=None, **settings):
    family, arguments = CASES[case]
    name = "digits"
    if MODELS[family].inputs == "tokens":
        name = "synthetic:6,classes=5,examples=200"
    elif case in ODD_SIZED:  # which XLA pads otherwise
        name = "synthetic:7x9x3,classes=3,examples=200"
    dataset = data.load(name)
    model = models.build(
        family,
        input_shape=dataset.input_shape,
        classes=dataset.classes,
        **{**arguments, **(more or {})},
    )
    optimizer = optimizers.build(optimizer, args, total_updates=20, **settings)
    return steps.Program(model, optimizer, dataset, batch_size)


def make_variables(program):
    """Variables drawn with numpy: of the right form, and nothing compiled for them."""
    generator = np.random.default_rng(1)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("scale", "var"):
            return np.ones(leaf.shape, np.float32)
        if leaf.ndim < 2:
            return np.zeros(leaf.shape, np.float32)
        spread = math.prod(leaf.shape[:-1]) ** -0.5
        return (spread * generator.standard_normal(leaf.shape)).astype(np.float32)

    shapes = jax.eval_shape(program.model.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def failures(checks):
    return [str(check) for check in checks if not check.passed]


def test_every_family_and_activation_has_a_twin():
    assert set(torch_twin.FAMILIES) == set(MODELS) == {family for family, _ in CASES.values()}
    assert set(torch_twin.ACTIVATIONS) == set(ACTIVATIONS)


@pytest.mark.parametrize("case", CASES)
def test_weights_come_back_from_pytorch_as_they_were(case):
    program = make_program(case)
    generator = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: generator.standard_normal(leaf.shape).astype(np.float32),
        make_variables(program),
    )
    bindings = transplant.bind(build_network(program.model))
    transplant.load(bindings, variables)
    back = transplant.read(bindings)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_weights_of_another_network_are_refused():
    bindings = transplant.bind(build_network(make_program("mlp").model))
    with pytest.raises(ValueError, match=r"Dense_0/kernel is \(64, 9\) in Flax"):
        transplant.load(bindings, make_variables(make_program("mlp", more={"width": 9})))
    variables = make_variables(make_program("mlp"))
    del variables["params"]["Dense_2"]
    with pytest.raises(ValueError, match="have no params/Dense_2/kernel"):
        transplant.load(bindings, variables)
    variables = make_variables(make_program("mlp"))
    variables["params"]["Dense_3"] = {"kernel": np.zeros((8, 8))}
    with pytest.raises(ValueError, match="network has no params/Dense_3"):
        transplant.load(bindings, variables)


def test_activations_and_their_slopes_are_the_same_numbers():
    points = np.linspace(-30.0, 30.0, 998)  # 0, where relu has no slope, is not among them

    def everything(x):
        value_and_slope = {}
        for name in ACTIVATIONS:
            slope = jax.grad(lambda x, name=name: jnp.sum(ACTIVATIONS[name](x)))(x)
            value_and_slope[name] = ACTIVATIONS[name](x), slope
        return value_and_slope

    with jax.enable_x64(True):
        ours = jax.tree.map(np.asarray, jax.jit(everything)(points))
    for name, (value, slope) in ours.items():
        x = torch.tensor(points, requires_grad=True)
        y = torch_twin.ACTIVATIONS[name](x)
        y.sum().backward()
        np.testing.assert_allclose(y.detach(), value, rtol=1e-10, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(x.grad, slope, rtol=1e-10, atol=1e-12, err_msg=name)


def test_a_pair_that_is_the_same_passes_and_says_so():
    program = make_program("mlp", "sgd", {"momentum": 0.9}, schedule="cosine")
    report = torch_twin.check_parity(program, make_variables(program))
    report.require()
    assert report.passed
    assert report.first_difference is None
    assert report.updates == 20
    names = [check.name for check in report.checks]
    assert names[:2] == ["float64 logits", "float64 gradients"]
    assert names[-1] == "float64 eager, last update: trace"
    assert json.loads(json.dumps(report.to_json()))["passed"]
    assert str(report).count(": same") == len(report.checks)


def compare_passes(program):
    checks = parity.compare_passes(program, make_variables(program))
    return parity.ParityReport(tuple(checks), 8, 0)


def test_logits_that_differ_in_own_precision_are_refused_at_once(monkeypatch):
    monkeypatch.setattr(parity, "_OWN_DISTANCES", 0)
    monkeypatch.setattr(parity, "_FEW_ULPS", 0)
    report = compare_passes(make_program("mlp-layer"))
    assert str(report.first_difference).startswith("float32 logits")
    assert [check.name for check in report.checks].count("float64 logits") == 1


@pytest.mark.parametrize(("kinks", "draws", "passes"), [(0, 1, True), (2, 3, True), (9, 5, False)])
def test_gradients_in_own_precision_have_to_agree_somewhere(monkeypatch, kinks, draws, passes):
    compare, looked = parity._compare_own_precision, []

    def compare_near_kinks(*args):
        logits, gradients = compare(*args)
        looked.append(gradients)
        if len(looked) <= kinks:
            gradients = dataclasses.replace(gradients, difference=1e-3, differs_at="Dense_0/bias")
        return [logits, gradients]

    monkeypatch.setattr(parity, "_compare_own_precision", compare_near_kinks)
    report = compare_passes(make_program("mlp"))
    assert (len(looked), report.passed) == (draws, passes)
    assert report.first_difference == (None if passes else "float32 gradients: Dense_0/bias")


def test_products_are_not_rounded_to_tf32_where_own_precision_is_looked_at():
    def rounding():
        return (
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.allow_tf32,
            jax.config.jax_default_matmul_precision,
        )

    before = rounding()
    torch.set_float32_matmul_precision("high")
    try:
        with parity._unrounded_products("cuda"):
            assert rounding() == ("highest", False, "highest")
        assert rounding() == ("high", *before[1:])
    finally:
        torch.set_float32_matmul_precision(before[0])


def test_pytorch_tries_algorithms_of_convolutions_as_xla_does(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    described = process.set_up(threads=1, tf32=None, device="cpu")
    assert torch.backends.cudnn.benchmark
    assert described["threads"] == 1
    assert described["cudnn_benchmark"] is None  # of no matter on the CPU


def test_networks_in_bfloat16_are_the_same():
    for name in ("mlp-layer", "cnn"):
        report = compare_passes(make_program(name, more={"precision": "bfloat16"}))
        report.require()
        assert [check.name for check in report.checks[-2:]] == [
            "bfloat16 logits",
            "bfloat16 gradients",
        ]


def test_each_kind_of_layer_tells_the_dtype_that_it_gives():
    asked = {}
    for precision in ("float32", "bfloat16"):
        program = make_program("mlp-layer", more={"precision": precision})
        training = torch_twin.build_training(program, make_variables(program))
        asked[precision] = training.layer_dtypes(np.arange(8))
        assert not any(layer._forward_hooks for layer in training.network.modules())
    assert set(asked["float32"].values()) == {"float32"}
    assert asked["bfloat16"]["Linear"] == "bfloat16"


def test_a_wrong_layer_is_named(monkeypatch):
    monkeypatch.setattr(layers, "_NORM_EPS", 1e-5)
    program = make_program("mlp-layer")
    checks = parity.compare_passes(program, make_variables(program))
    report = parity.ParityReport(tuple(checks), 8, 0)
    assert report.first_difference == "float64 logits: LayerNorm_0"
    with pytest.raises(RunError, match="first at LayerNorm_0"):
        report.require()


def test_a_wrong_optimizer_is_named(monkeypatch):
    def with_epsilon_outside_the_root(groups, hyper, kernels):
        start = hyper["initial_accumulator_value"]
        return torch.optim.Adagrad(groups, initial_accumulator_value=start, eps=hyper["eps"])

    wrong = dataclasses.replace(twins.OPTIMIZERS["adagrad"], make=with_epsilon_outside_the_root)
    monkeypatch.setattr(twins, "OPTIMIZERS", {"adagrad": wrong})
    program = make_program("mlp", "adagrad", {"eps": 1e-3})
    checks = parity.compare_updates(program, make_variables(program), updates=2)
    assert failures(checks)[0].startswith("float64 eager, first update: params")
    assert "first at Dense_0/kernel" in failures(checks)[0]


# Each optimizer that has a twin, with what changes its formula.
UPDATES = {
    "sgd": ("sgd", {}, {}),
    "sgd-momentum-clip": ("sgd", {"momentum": 0.9}, {"weight_decay": 0.1, "clip_norm": 0.3}),
    "sgd-nesterov-warmup": (
        "sgd",
        {"momentum": 0.9, "nesterov": True},
        {"schedule": "warmup_cosine:warmup=0.3"},
    ),
    "adam": ("adam", {"eps": 1e-4}, {"weight_decay": 0.1}),
    "adamw": ("adamw", {"eps": 1e-4}, {"weight_decay": 0.3}),
    "nadam": ("nadam", {"eps": 1e-4}, {}),
    "nadamw": ("nadamw", {}, {"weight_decay": 0.3}),
    "radam": ("radam", {"eps": 1e-4}, {"weight_decay": 0.1}),
    "adagrad": ("adagrad", {"eps": 1e-3}, {}),
    "adadelta": ("adadelta", {"rho": 0.8}, {"weight_decay": 0.1}),
    "adamax": ("adamax", {"eps": 1e-4}, {}),
    "rmsprop": ("rmsprop", {"eps_in_sqrt": False, "eps": 1e-4}, {}),
    "muon": ("muon", {"nesterov": False}, {"weight_decay": 0.1}),
    "rprop": ("rprop", {}, {"learning_rate": 0.01, "weight_decay": 0.1, "schedule": "cosine"}),
    "rprop-bounds": ("rprop", {"min_step_size": 1e-3, "max_step_size": 2e-3}, {}),
    "lbfgs-zoom": ("lbfgs", {"memory_size": 4}, {}),
    "lbfgs-none": ("lbfgs", {"linesearch": "none", "memory_size": 4}, {"learning_rate": 0.05}),
    "lbfgs-unscaled": (
        "lbfgs",
        {"linesearch": "none", "scale_init_precond": False},
        {"learning_rate": 0.05},
    ),
    "rmsprop-centered": (
        "rmsprop",
        {"eps_in_sqrt": False, "centered": True, "momentum": 0.9, "eps": 1e-4},
        {"schedule": "constant"},
    ),
}
STATES = {"sgd": set(), "rmsprop": {"nu"}}  # where less than all is kept


@pytest.mark.parametrize("case", UPDATES)
def test_twenty_updates_of_every_optimizer(case):
    name, args, settings = UPDATES[case]
    program = make_program("mlp", name, args, more={"depth": 1}, **settings)
    checks = parity.compare_updates(program, make_variables(program))
    assert not failures(checks)
    states = {check.name.rpartition(": ")[2] for check in checks} - {"params"}
    assert states == STATES.get(case, set(twins.OPTIMIZERS[name].state))


def test_every_twin_is_among_those_tested():
    assert {name for name, _, _ in UPDATES.values()} == set(torch_twin.OPTIMIZERS)
    assert set(torch_twin.OPTIMIZERS) < set(optimizers.OPTIMIZERS)


@pytest.mark.parametrize("optimizer", ["sgd", "lbfgs"])
def test_micro_batches_and_running_statistics(optimizer):
    """A line search evaluates the batch again, and running statistics see it once."""
    program = make_program("mlp-batch", optimizer, batch_size=16)
    program = dataclasses.replace(program, accumulate=2)
    assert not failures(parity.compare_updates(program, make_variables(program), updates=3))


def test_rprop_takes_pytorchs_steps_one_update_late_or_never():
    gradients = np.random.default_rng(0).standard_normal((30, 50))
    parameters = [torch.zeros(50, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    ours = Rprop([parameters[0]], first_step=0.1, etas=(0.5, 1.2), step_sizes=(1e-3, 0.4))
    pytorchs = torch.optim.Rprop([parameters[1]], 0.1, etas=(0.5, 1.2), step_sizes=(1e-3, 0.4))
    late = np.zeros(50)
    for gradient, following in itertools.pairwise(gradients):
        before = [p.detach().numpy().copy() for p in parameters]
        for parameter, optimizer in zip(parameters, (ours, pytorchs), strict=True):
            parameter.grad = torch.tensor(gradient)
            optimizer.step()
        moved, at_once = (
            p.detach().numpy() - old for p, old in zip(parameters, before, strict=True)
        )
        np.testing.assert_allclose(moved, late, atol=1e-15)
        late = np.where(np.sign(following) == -np.sign(at_once), at_once, 0.0)


def test_lbfgs_is_pytorchs_own_with_another_first_step_where_all_curves_upwards():
    generator = np.random.default_rng(0)
    root = torch.tensor(generator.standard_normal((12, 12)))
    hessian = root @ root.T + torch.eye(12, dtype=torch.float64)
    start = torch.tensor(generator.standard_normal(12))
    ours, theirs = (start.clone().requires_grad_() for _ in range(2))
    rate = 0.3
    own = LBFGS(
        [{"params": [ours], "lr": rate}], memory_size=4, scale_first=True, search_steps=None
    )
    first = hessian @ start
    assert torch.linalg.vector_norm(first) > 1
    pytorchs = torch.optim.LBFGS(
        [theirs],
        lr=float(rate * first.abs().sum() / torch.linalg.vector_norm(first)),
        max_iter=1,
        history_size=4,
        tolerance_grad=0.0,
        tolerance_change=0.0,
    )

    def loss_of(parameter):
        parameter.grad = None
        loss = 0.5 * parameter @ hessian @ parameter
        loss.backward()
        return loss

    for _ in range(20):
        loss_of(ours)
        own.step()
        pytorchs.step(lambda: loss_of(theirs))
        pytorchs.param_groups[0]["lr"] = rate
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    assert loss_of(ours) < 1e-3 * 0.5 * start @ first


@pytest.mark.parametrize("max_steps", [2, 20])
def test_the_line_search_finds_optaxs_step(max_steps):
    """Along curves with many valleys, some with an end beyond which there is no number."""
    optax_search = optax.scale_by_zoom_linesearch(max_steps, initial_guess_strategy="one")

    def curve(x, a):
        return (
            a[0] * x**2 + a[1] * jnp.sin(a[2] * x) - a[3] * jnp.log(1 - a[4] * x) - a[5] * x
        ).sum()

    @jax.jit
    def search(a):
        zero, one = jnp.zeros(1), jnp.ones(1)
        value, slope = jax.value_and_grad(curve)(zero, a)
        state = optax_search.init(zero)
        _, state = optax_search.update(
            one, state, zero, value=value, grad=slope, value_fn=curve, a=a
        )
        return value, slope[0], state.learning_rate, state.info.num_linesearch_steps

    generator = np.random.default_rng(0)
    trials = set()
    with jax.enable_x64(True):
        look = jax.jit(jax.value_and_grad(curve))

        def evaluate(step):
            value, slope = look(jnp.full(1, step), a)
            calls.append(step)
            return float(value), float(slope[0])

        for _ in range(150):
            scales = 10.0 ** generator.uniform([-1, -1, 0, -1, -1, -1], [2, 1, 1.5, 1, 1, 2])
            a, calls = jnp.asarray(scales), []
            value, slope, step, count = search(a)
            ours = zoom(evaluate, float(value), float(slope), max_steps)
            assert ours == pytest.approx(float(step), rel=1e-9, abs=1e-12)
            assert len(calls) == int(count)
            trials.add(len(calls))
    assert {1, max_steps} <= trials


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": "lion"}, "--optimizer=lion has no twin in PyTorch"),
        ({"optimizer": "rmsprop"}, "Give --optimizer_args=eps_in_sqrt=false."),
        ({"optimizer": "amsgrad"}, "PyTorch's of plain ones"),
        ({"optimizer": "rprop", "learning_rate": 60.0}, "within min_step_size and max_step_size"),
        (
            {"optimizer": "lbfgs", "args": {"linesearch": "backtracking"}},
            "Give --optimizer_args=linesearch=zoom or",
        ),
        ({"more": {"dropout": 0.1}}, "Give dropout=0."),
        (
            {"case": "cnn", "optimizer": "muon", "args": {"nesterov": False}},
            "for networks with convolutions",
        ),
        (
            {"more": {"norm": "batch"}, "accumulate": 8},
            "at least 16, or --model_args=norm=layer.",
        ),
    ],
)
def test_what_has_no_twin_is_refused_with_what_has(changes, said):
    accumulate = changes.get("accumulate", 1)
    program = make_program(**{k: v for k, v in changes.items() if k != "accumulate"})
    program = dataclasses.replace(program, accumulate=accumulate)
    with pytest.raises(UsageError) as caught:
        torch_twin.check_has_twin(program)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3
    if "lion" in said:
        assert "Those that have one: adadelta, adagrad, adam," in str(caught.value)


@pytest.mark.parametrize("case", ["mlp-batch", "resnet", "mobilenet", "convnext-batch"])
def test_a_batch_norm_sees_as_many_values_as_the_trace_says(case):
    program = make_program(case)
    training = torch_twin.build_training(program, make_variables(program))
    seen = {}
    for name, layer in transplant.named_layers(training.network):
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.register_forward_pre_hook(
                lambda _, args, name=name: seen.update({name: args[0].numel() // args[0].shape[1]})
            )
    training.update(np.arange(program.batch_size))
    assert seen
    assert seen == program.model.batch_norm_values(program.batch_size)


def test_random_augmentation_has_no_twin():
    program = dataclasses.replace(make_program("mlp"), augment=True)
    with pytest.raises(UsageError, match="--augment has no twin"):
        torch_twin.check_has_twin(program)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"mode": "jit"}, "mode=jit is unknown"),
        ({"mode": "cuda_graphs"}, "needs device=cuda"),
        ({"device": "tpu"}, "device=tpu is unknown"),
    ],
)
def test_modes_and_devices_that_are_not_there_are_refused(arguments, said):
    program = make_program("mlp")
    with pytest.raises(UsageError, match=said):
        torch_twin.build_training(program, make_variables(program), **arguments)


def test_without_torch_one_line_says_how_to_install_it():
    code = "import sys; sys.modules['torch'] = None; import jaxenergy.torch_twin"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    line = done.stderr.splitlines()[-1]
    assert line.startswith("jaxenergy.errors.UsageError: PyTorch cannot be imported")
    assert "pip install -c constraints.txt -e '.[torch]'" in line
    assert "whl/cpu" in line


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_passes_of_every_family(case):
    program = make_program(case)
    assert not failures(parity.compare_passes(program, make_variables(program)))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["resnet", "mobilenet", "transformer_lm", "lstm"])
def test_updates_of_families_with_all_that_is_special(case):
    program = make_program(case, "adamw")
    assert not failures(parity.compare_updates(program, make_variables(program)))


@pytest.mark.slow
# TorchInductor still asks TorchScript for something that is deprecated.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("case", ["mlp-batch", "mobilenet"])
def test_compiled_updates_are_the_same(case):
    program = make_program(case, "sgd", {"momentum": 0.9})
    variables = make_variables(program)
    assert not failures(parity.compare_updates(program, variables, modes=("compile",)))
