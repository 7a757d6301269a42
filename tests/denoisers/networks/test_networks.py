"""Every network: what it accepts and returns, what it must react to, the transforms it must survive."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError
from retrodict.data import Graphs
from retrodict.denoisers.networks import Network, make_network, networks
from retrodict.denoisers.networks.graph_transformer import IMPOSSIBLE

TINY: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": 16, "depth": 2},
    "unet": {"channels": [8, 16], "head_width": 8, "width": 16},
    "unet1d": {"channels": [8, 16], "head_width": 8, "width": 16},
    "transformer": {"hidden": 16, "depth": 2, "heads": 2},
    "count-unet": {"channels": [8, 16], "head_width": 8, "width": 16, "features": 3},
    "graph-transformer": {"hidden": 16, "pairs": 8, "depth": 2, "heads": 2},
}
CONDITIONS = {"label": 3, "pose": (2,)}
#: kind, shape, further arguments, shape of the output
CASES = [
    ("mlp", (3,), {}, (3,)),
    ("mlp", (1, 3, 2), {"out_channels": 2}, (2, 3, 2)),
    ("mlp", (5, 2), {"out_channels": 4}, (5, 4)),
    ("unet", (1, 8, 8), {}, (1, 8, 8)),
    ("unet", (3, 7, 5), {"out_channels": 6, "channels": [8, 16, 24], "attention": [0, 1]}, (6, 7, 5)),
    ("unet", (2, 1, 3), {"blocks": 2}, (2, 1, 3)),
    ("unet1d", (13, 2), {"out_channels": 4}, (13, 4)),
    ("unet1d", (8, 1), {}, (8, 1)),
    ("transformer", (3, 7, 5), {"patch": 2, "out_channels": 6}, (6, 7, 5)),
    ("transformer", (11, 2), {"patch": 4}, (11, 2)),
    ("transformer", (6,), {"vocabulary": 5, "out_channels": 4, "patch": 1}, (6, 4)),
    ("transformer", (6,), {"vocabulary": 5, "patch": 3}, (6, 5)),
    ("count-unet", (1, 4, 4), {"vocabulary": 6, "out_channels": 5}, (1, 4, 4, 5)),
    ("count-unet", (2, 3, 5), {"vocabulary": 4}, (2, 3, 5, 4)),
    ("graph-transformer", (10,), {"vocabulary": 6, "node_types": 2, "edge_types": 3}, (10, 5)),
]
IDS = [f"{kind}-{'x'.join(map(str, shape))}" for kind, shape, _, _ in CASES]
one_of_each = pytest.mark.parametrize("case", [CASES[i] for i in (0, 4, 6, 8, 11)], ids=lambda c: c[0] + str(len(c[1])))
every = pytest.mark.parametrize("case", CASES, ids=IDS)


def build(case: tuple, dtype: torch.dtype = torch.float32, awake: bool = True, **more: Any) -> Network:
    """The network of a case; ``awake`` moves its parameters away from the zero start."""
    kind, shape, extra, _ = case
    torch.manual_seed(0)
    network = make_network(kind, shape, **({"conditions": CONDITIONS} | TINY[kind] | extra | more)).to(dtype).eval()
    if awake:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def possible(y: Tensor) -> Tensor:
    """The entries that are not impossible logits."""
    return y[y != IMPOSSIBLE]


def inputs(case: tuple, batch: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    _, shape, extra, _ = case
    g = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *shape, generator=g, dtype=dtype)
    if "vocabulary" in extra:
        x = torch.randint(extra["vocabulary"], (batch, *shape), generator=g)
    t = torch.linspace(-5.0, 5.0, batch, dtype=dtype)
    pose = torch.randn(batch, 2, generator=g, dtype=dtype)
    pose[-1] = torch.nan
    return x, t, {"label": torch.arange(batch) % 4, "pose": pose}


@every
def test_output_has_the_shape_and_dtype_asked_for(case):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        network = build(case, dtype)
        x, t, c = inputs(case, dtype=dtype)
        y = network(x, t, **c)
        assert y.shape == (4, *case[3]) and y.dtype == dtype and y.isfinite().all()


@every
def test_a_new_network_is_zero_and_a_config_rebuilds_a_trained_one(case):
    x, t, c = inputs(case)
    assert (possible(build(case, awake=False)(x, t, **c)) == 0).all()
    network = build(case)
    again = networks[network.name](**json.loads(json.dumps(network.config)))
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(x, t, **c), network(x, t, **c))
    assert again.config == network.config and again.conditions.keys() == CONDITIONS.keys()


@every
def test_time_label_and_vector_each_change_the_output_and_so_does_their_null(case):
    network = build(case)
    x, t, c = inputs(case)
    y = network(x, t, **c)

    def moved(t: Tensor = t, **change: Tensor) -> Tensor:
        """Largest change of the output for each sample."""
        return (network(x, t, **(c | change)) - y).abs().flatten(1).amax(1)

    assert (moved(t=t + 0.05) > 1e-4).all()
    assert (moved(label=(c["label"] + 1) % 4) > 1e-4).all()
    assert (moved(pose=torch.full((4, 2), torch.nan))[:3] > 1e-4).all()
    assert (moved(pose=torch.full((4, 2), torch.nan))[3] == 0).all()
    assert (moved(pose=c["pose"] + 0.1)[:3] > 1e-4).all()
    assert not possible(network(x, t, **(c | {"pose": torch.tensor([[torch.nan, 1.0]] * 4)}))).isfinite().any()


@every
def test_samples_of_a_batch_do_not_touch_each_other(case):
    network = build(case, torch.float64)
    x, t, c = inputs(case, dtype=torch.float64)
    y = network(x, t, **c)
    order = torch.tensor([2, 0, 3, 1])
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], **{k: v[i : i + 1] for k, v in c.items()}) for i in order])
    torch.testing.assert_close(alone, y[order])


@every
def test_gradients_reach_every_parameter(case):
    network = build(case).train()
    x, t, c = inputs(case)
    network(x, t, **c).square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


@one_of_each
def test_forward_and_reverse_derivatives_equal_finite_differences(case):
    network = build(case, torch.float64)
    x, t, c = inputs(case, dtype=torch.float64)
    if not x.is_floating_point():
        x = torch.nn.functional.one_hot(x, case[2]["vocabulary"]).double()
    c = c | {"pose": c["pose"].nan_to_num(0.3)}
    g = torch.Generator().manual_seed(2)
    dx, dt = (
        torch.randn(x.shape, generator=g, dtype=x.dtype),
        torch.randn(t.shape, generator=g, dtype=t.dtype),
    )
    _, jvp = torch.func.jvp(lambda x, t: network(x, t, **c), (x, t), (dx, dt))
    h = 1e-5
    difference = (network(x + h * dx, t + h * dt, **c) - network(x - h * dx, t - h * dt, **c)) / (2 * h)
    torch.testing.assert_close(jvp, difference, rtol=1e-6, atol=1e-6)
    y, pull = torch.func.vjp(lambda x, t: network(x, t, **c), x, t)
    v = torch.randn(y.shape, generator=g, dtype=y.dtype)
    gx, gt = pull(v)
    torch.testing.assert_close((gx * dx).sum() + (gt * dt).sum(), (v * jvp).sum())


@one_of_each
def test_vmap_over_samples_equals_the_batch(case):
    network = build(case, torch.float64)
    x, t, c = inputs(case, dtype=torch.float64)
    single = torch.func.vmap(lambda x, t, label, pose: network(x[None], t[None], label=label[None], pose=pose[None])[0])
    torch.testing.assert_close(single(x, t, c["label"], c["pose"]), network(x, t, **c))


@one_of_each
def test_compiles_as_one_graph(case):
    network = build(case)
    x, t, c = inputs(case)
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, t, **c), network(x, t, **c))


@one_of_each
def test_autocast_to_bfloat16_stays_near(case):
    network = build(case)
    x, t, c = inputs(case)
    y = network(x, t, **c)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(x, t, **c)
    assert ((rough.float() - y).norm() / y.norm()).item() < 0.05


@one_of_each
def test_learns_a_target_that_needs_both_time_and_label(case):
    """Without the time the best is 1.0 of the target's power, without the label 0.78: 0.15 needs both."""
    network = build(case, awake=False, conditions={"label": 3}, dropout=0.0).train()
    g = torch.Generator().manual_seed(3)
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    worst = []
    for _ in range(250):
        x, _, _ = inputs(case, batch=32)
        t, label = torch.rand(32, generator=g), torch.randint(4, (32,), generator=g)
        target = torch.where(t > 0.5, 1.0, -1.0) * torch.tensor([0.5, 1.0, 1.5, -1.0])[label]
        y = network(x, t, label=label)
        loss = (y - target.reshape(-1, *(1,) * (y.ndim - 1))).square().mean() / target.square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        worst.append(loss.item())
    assert sum(worst[-20:]) / 20 < 0.15


@pytest.mark.parametrize("kind", ["mlp", "unet", "transformer"])
def test_a_network_without_a_time_input(kind):
    case = (kind, (1, 4, 4), {"time": False}, None)
    network = build(case)
    network = networks[kind](**network.config)
    x, t, c = inputs(case)
    assert network(x, None, **c).shape == x.shape
    with pytest.raises(InputError, match="time=False"):
        network(x, t, **c)


def test_dropout_acts_in_training_only():
    case = ("unet", (1, 8, 8), {"dropout": 0.5}, None)
    network, (x, t, c) = build(case), inputs(case)
    assert torch.equal(network(x, t, **c), network(x, t, **c))
    network.train()
    assert not torch.equal(network(x, t, **c), network(x, t, **c))


@pytest.mark.parametrize(
    ("shape", "vocabulary", "name"),
    [
        ((4,), None, "mlp"),
        ((9, 2), None, "unet1d"),
        ((1, 8, 8), None, "unet"),
        ((9,), 3, "transformer"),
        ((1, 8, 8), 3, "count-unet"),
    ],
)
def test_auto_chooses_by_the_layout(shape, vocabulary, name):
    assert make_network("auto", shape, vocabulary=vocabulary).name == name


def test_bad_calls_name_what_was_given_and_what_to_do():
    network = build(CASES[3])
    x, t, c = inputs(CASES[3])
    for bad, message in [
        (lambda: network(x[:, :, :7], t, **c), r"built for \('batch', 1, 8, 8\)"),
        (lambda: network(x, t[:3], **c), r"accepted: reals of shape \(4,\)"),
        (lambda: network(x, torch.tensor(0.5), **c), "one time per sample"),
        (lambda: network(x, None, **c), "t is None"),
        (lambda: network(x, t, pose=c["pose"]), "'label' is missing"),
        (lambda: network(x, t, **c, labels=c["label"]), "Did you mean 'label'"),
        (lambda: network(x, t, **(c | {"label": c["label"] + 1})), "out of range; accepted: 0 to 2, or 3"),
        (lambda: network(x, t, **(c | {"label": c["label"] - 1})), "out of range"),
    ]:
        with pytest.raises(InputError, match=message):
            bad()
    for bad, message in [
        (lambda: network(x.double(), t, **c), "x.to"),
        (lambda: network((x * 10).long(), t, **c), "torch.int64"),
        (lambda: network(x, t, **(c | {"label": c["label"].float()})), "int64"),
        (lambda: network(x, t, **(c | {"pose": c["pose"][:, :1]})), r"\('batch', 2\)"),
    ]:
        with pytest.raises(InputTypeError, match=message):
            bad()


@pytest.mark.parametrize("bias", [None, 0.7])
def test_graphs_may_be_renumbered(bias):
    """Renumbered nodes give renumbered logits, to rounding; and an edge is heard by the nodes that it joins."""
    case = CASES[-1]
    network = build(case, torch.float64)
    x, t, c = inputs(case, dtype=torch.float64)
    codec = Graphs(4, 2, 3)
    order = torch.tensor([2, 0, 3, 1])
    i, j = torch.triu_indices(4, 4, 1).unbind()
    number = torch.zeros(4, 4, dtype=torch.long)
    number[i, j] = number[j, i] = torch.arange(6) + 4
    place = torch.cat([order, number[order[i], order[j]]])
    nodes, edges = torch.tensor([[0, 1, 1, 0]] * 4), torch.randint(0, 3, (4, 4, 4)).triu(1)
    clean = codec.encode((nodes, edges + edges.mT))
    moved = codec.encode((nodes[:, order], (edges + edges.mT)[:, order][:, :, order]))
    assert torch.equal(clean[:, place], moved)
    if bias is not None:
        with torch.no_grad():
            network.loop.fill_(bias)
    y = network(x, t, **c)
    torch.testing.assert_close(network(x[:, place], t, **c), y[:, place], rtol=1e-10, atol=1e-10)
    other = x.clone()
    other[:, 4] = (x[:, 4] + 1) % 6  # the pair (0, 1)
    change = (network(other, t, **c) - y).abs().sum(-1)
    assert (change > 1e-6).all()  # by all, though the nodes of a sample may be equal
    assert (y.argmax(-1)[:, :4] < 2).all() and (y.argmax(-1)[:, 4:] >= 2).all()


def test_bad_values_of_images_and_graphs_are_refused():
    for case in CASES[-3:]:
        network = build(case)
        x, t, c = inputs(case)
        with pytest.raises(InputError, match="out of range; accepted: 0 to"):
            network(x + 3, t, **c)
        with pytest.raises(InputTypeError, match="int64 values"):
            network(x.float(), t, **c)
    graph = {"vocabulary": 6, "node_types": 2, "edge_types": 3}
    for shape, more, message in [
        ((9,), {}, "got 9"),
        ((10,), {"vocabulary": 4}, "below the 5 values"),
        ((10,), {"out_channels": 6}, r"2 \+ 3 clean values"),
        ((10,), {"hidden": 15}, "hidden=15|width 15"),
    ]:
        with pytest.raises(InputError, match=message):
            make_network("graph-transformer", shape, **(graph | more))


def test_bad_tokens_are_refused():
    network = build(CASES[11])
    x, t, c = inputs(CASES[11])
    with pytest.raises(InputError, match="out of range; accepted: 0 to 4"):
        network(x + 1, t, **c)
    with pytest.raises(InputTypeError, match="int64 tokens"):
        network(x.int(), t, **c)
    with pytest.raises(InputError, match="probabilities"):
        network(torch.rand(4, 6, 4), t, **c)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "unett", "shape": (1, 8, 8)}, "Did you mean 'unet'"),
        ({"kind": "auto", "shape": (8,), "layout": "vectors"}, "Did you mean 'vector'"),
        ({"kind": "auto", "shape": (8, 8), "layout": "image"}, "2 axes"),
        ({"kind": "unet", "shape": (8,)}, r"\(channel, height, width\)"),
        ({"kind": "mlp", "shape": (8,), "hiden": 3}, "Did you mean 'hidden'"),
        ({"kind": "mlp", "shape": (8,), "vocabulary": 3}, "takes no tokens"),
        ({"kind": "auto", "shape": (8,), "layout": "tokens"}, "vocabulary="),
        ({"kind": "mlp", "shape": (0,)}, "positive"),
        ({"kind": "mlp", "shape": (3,), "out_channels": 0}, "positive"),
        ({"kind": "mlp", "shape": (3,), "hidden": 7}, "even"),
        ({"kind": "mlp", "shape": (3,), "dropout": 1.0}, r"\[0, 1\)"),
        ({"kind": "mlp", "shape": (3,), "conditions": {"x": 3}}, "'x'"),
        ({"kind": "unet", "shape": (1, 8, 8), "attention": [3]}, "levels 0 to 2"),
        ({"kind": "transformer", "shape": (1, 8, 8), "heads": 3}, "heads=3"),
        ({"kind": "transformer", "shape": (8,), "vocabulary": 3, "patch": 3}, "does not divide"),
        ({"kind": "transformer", "shape": (8,)}, "vocabulary="),
    ],
)
def test_bad_constructions_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        make_network(**arguments)


def test_bad_condition_specs_are_refused():
    with pytest.raises(InputTypeError, match="positive integers"):
        make_network("mlp", (3,), conditions={"label": 2.5})  # type: ignore[dict-item]
