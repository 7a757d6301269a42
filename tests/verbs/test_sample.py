"""sample: reproducible noise, batches and processes, populations, and errors before any work."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError, InputTypeError, NonFiniteError
from retrodict.denoisers import TwoEnded
from retrodict.denoisers.networks import make_network

LAW = rd.exact.GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [1.0, -0.5]], [0.1, 0.2], labels=[0, 1])
PATH = rd.VP("cosine")
QUIET = {"progress": False}


def _network(seed: int = 0) -> rd.Denoiser:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = make_network("mlp", (2,), conditions={"label": 3})
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.2)
    return rd.Denoiser.wrap(net, PATH, "edm", shape=(2,), conditions={"label": 3})


@pytest.mark.parametrize("words", [{"nfe": 8}, {"solver": "ddim", "eta": 1.0, "steps": 6}], ids=["ode", "sde"])
def test_sample_i_is_the_same_for_every_batch_size(words):
    """Bitwise for an oracle; within 1e-5 relative in float32 for a network, whose matrix products block differently."""
    oracle, network = LAW.denoiser(PATH), _network()
    whole = rd.sample(oracle, 64, seed=5, **words, **QUIET).x
    for batch_size in (1, 7, 64):
        assert torch.equal(rd.sample(oracle, 64, seed=5, batch_size=batch_size, **words, **QUIET).x, whole)
    a = rd.sample(network, 64, seed=5, **words, **QUIET).x
    b = rd.sample(network, 64, seed=5, batch_size=7, **words, **QUIET).x
    assert float((a - b).norm() / a.norm()) < 1e-5
    assert not torch.equal(rd.sample(oracle, 64, seed=6, **words, **QUIET).x, whole)


def _one_of_two(rank: int, port: int, path: str) -> None:
    import os

    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": str(rank),
    }
    from accelerate import PartialState

    PartialState(cpu=True, backend="gloo")
    samples = rd.sample(LAW.denoiser(PATH), 9, solver="ddim", eta=1.0, steps=6, seed=5, progress=False)
    if rank == 0:
        from safetensors.torch import save_file

        save_file({"x": samples.x}, path)
    torch.distributed.destroy_process_group()


def test_two_processes_draw_what_one_draws(tmp_path):
    """Sampling shards by sample index: the union is what a single process gives, bit for bit."""
    import socket

    from safetensors.torch import load_file

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_one_of_two, (port, str(tmp_path / "x.safetensors")), nprocs=2)
    alone = rd.sample(LAW.denoiser(PATH), 9, solver="ddim", eta=1.0, steps=6, seed=5, **QUIET)
    assert torch.equal(load_file(tmp_path / "x.safetensors")["x"], alone.x)


def test_populations_do_not_depend_on_how_they_are_batched():
    product = rd.Product([LAW.denoiser(PATH), LAW.denoiser(PATH)])
    words = {"steps": 8, "population": rd.Population(size=16), "seed": 1, **QUIET}
    whole = rd.sample(product, 6, **words)
    assert torch.equal(rd.sample(product, 6, batch_size=32, **words).x, whole.x)
    assert whole.correction == "weighted" and whole.log_evidence.shape == (6,)


def test_a_middle_start_continues_a_path():
    """Corrupting exact data to t = .5 and running back from there keeps the law's moments."""
    plan = rd.plan("adams", PATH, steps=40, order=2).between(0.5)
    data = LAW.sample(4000, seed=1)
    half = PATH.corrupt(
        data, 0.5, torch.randn(data.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    x = rd.sample(LAW.denoiser(PATH), 4000, plan=plan, init=half, **QUIET).x
    assert torch.allclose(x.mean(0), LAW.mean, atol=0.06)  # 4 standard errors
    assert torch.allclose(x.T.cov(), LAW.covariance, atol=0.09)


def test_weighted_means_and_draws_agree():
    product = rd.Product([LAW.denoiser(PATH), LAW.denoiser(PATH)])
    run = rd.sample(product, 3000, steps=20, population=rd.Population(threshold=0.0), **QUIET)
    assert float((run.draws(3000).mean(0) - run.mean()).abs().max()) < 0.05


def test_trajectory_ends_at_the_samples():
    run = rd.sample(LAW.denoiser(PATH), 5, nfe=6, trajectory=True, **QUIET)
    assert run.trajectory.x.shape == (7, 5, 2) and len(run.trajectory.times) == 7
    assert torch.equal(run.trajectory.x[-1], run.x)
    fast = rd.sample(LAW.denoiser(PATH), 5, nfe=6, **QUIET).x  # the fast runtime eliminates registers
    assert torch.allclose(fast, run.x, atol=1e-12)


def test_a_non_finite_network_is_named_with_its_time():
    class Breaks(torch.nn.Module):
        def forward(self, x, t):
            return torch.where(t[:, None] < -0.5, x, x * float("nan"))

    denoiser = rd.Denoiser.wrap(Breaks(), PATH, "data", shape=(2,))
    with pytest.raises(NonFiniteError, match=r"evaluation 1, t = 0\.874"):
        rd.sample(denoiser, 4, solver="ddim", steps=8, grid="angle", **QUIET)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"n": 0}, "at least 1"),
        ({"n": 4, "lable": 1}, "Did you mean 'label'"),
        ({"n": 4, "label": torch.tensor([0, 1, 2, 3])}, "3 is out of range"),
        ({"n": 4, "label": torch.tensor([0, 1])}, "length 2 for n=4"),
        ({"n": 4, "solver": "dimm", "nfe": 4}, "Did you mean 'ddim'"),
        ({"n": 4, "solver": "ddim", "steps": 0}, "at least 1"),
        ({"n": 4, "solver": "ddim", "steps": 4, "grid": "karas"}, "Did you mean 'karras'"),
        ({"n": 4, "solver": "ddim", "grid": [1.0, 0.5, 0.7]}, "decrease"),
        ({"n": 4, "solver": "ddim", "grid": [1.5, 0.5]}, r"\[0, 1\]"),
        ({"n": 4, "solver": "ddim", "steps": 4, "eta": 2.0}, "between 0 and 1"),
        ({"n": 4, "start": 0.5, "nfe": 4}, "pass init"),
        ({"n": 4, "init": torch.zeros(4, 3), "nfe": 4}, "init has shape"),
        ({"n": 4, "init": torch.zeros(3, 2), "nfe": 4}, "init has length 3"),
        ({"n": 4, "nfe": 4, "population": "yes"}, "population is"),
        ({"n": 1, "nfe": 4, "population": True}, "population of one"),
        ({"n": 4, "nfe": 4, "batch_size": 0}, "batch_size"),
        ({"n": 4, "nfe": 4, "guidance": float("nan")}, "finite"),
        (
            {"n": 2, "nfe": 4, "guidance": 2.0, "population": True, "label": torch.tensor([0, 1])},
            "share their conditions",
        ),
    ],
)
def test_bad_words_raise_before_any_work(words, message):
    denoiser = LAW.denoiser(PATH)
    calls = []
    denoiser.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(InputError, match=message):
        rd.sample(denoiser, words.pop("n"), progress=False, **words)
    assert not calls


def test_a_plan_excludes_the_words_that_it_fixes():
    plan = rd.plan("ddim", PATH, steps=4)
    denoiser, x = LAW.denoiser(PATH), torch.zeros(4, 2)
    with pytest.raises(InputError, match="4 evaluations, not 8: leave out nfe"):
        rd.sample(denoiser, 4, plan=plan, nfe=8)
    said: list[dict[str, Any]] = [
        {"steps": 4},
        {"grid": torch.tensor([1.0, 0.5, 0.0])},
        {"options": {"order": 2}},
        {"end": 0.1},
        {"solver": "unipc"},
    ]
    for words in said:
        with pytest.raises(InputError, match=f"leave out {next(iter(words))}"):
            rd.sample(denoiser, 4, plan=plan, **words)
        with pytest.raises(InputError, match=f"leave out {next(iter(words))}"):
            rd.invert(denoiser, x, plan=plan, **words)
    with pytest.raises(InputError, match="leave out start"):
        rd.backprop(denoiser, x, plan=plan, start=0.5)
    assert rd.sample(denoiser, 4, plan=plan, nfe=4, **QUIET).nfe == 4


def test_one_file_stands_for_the_plans_beside_it(tmp_path):
    plans = {n: rd.plan("ddim", PATH, steps=n) for n in (3, 5)}
    plans[5].save(tmp_path / "plan.json")
    for n, plan in plans.items():
        plan.save(tmp_path / f"plan-{n}.json")
    plans[3].save(tmp_path / "plan-old-3.json")
    for n in (3, 5, None):
        words = {"plan": tmp_path / "plan.json", "nfe": n}
        assert rd.sample(LAW.denoiser(PATH), 4, **words, **QUIET).nfe == (n or 5)
        assert rd.Plan.load(tmp_path / "plan.json", nfe=n) == plans[n or 5]
    with pytest.raises(InputError, match=r"5 evaluations, not of 4; beside it: 3 \(plan-3.json\), 5 \(plan-5.json\)$"):
        rd.sample(LAW.denoiser(PATH), 4, plan=tmp_path / "plan.json", nfe=4)
    plans[3].save(tmp_path / "plan-4.json")  # a name is not believed
    with pytest.raises(InputError, match="not of 4"):
        rd.Plan.load(tmp_path / "plan.json", nfe=4)
    with pytest.raises(InputError, match=r"no plan-old-3-<evaluations>\.json"):
        rd.Plan.load(tmp_path / "plan-old-3.json", nfe=9)


def test_a_bare_network_is_refused_with_the_way_to_wrap_it():
    with pytest.raises(InputTypeError, match=r"Denoiser\.wrap"):
        rd.sample(torch.nn.Linear(2, 2), 4)


def test_a_solver_of_one_unknown_end_is_refused_where_two_are_unknown():
    path = rd.processes.GaussianPath(lambda t: 1 - t, lambda t: t, lambda t: t)  # residual and noise together
    ends = TwoEnded(make_network("mlp", (2,), out_channels=4), path, shape=(2,))
    x1 = torch.zeros(3, 2)
    with pytest.raises(InputError, match=r"one unknown end.*ddim"):
        rd.sample(ends, 3, solver="dpm++2m", steps=4, init=x1, **QUIET)
    assert rd.sample(ends, 3, solver="dpm++2m", steps=4, init=x1, x1=x1, **QUIET).x.shape == (3, 2)
    assert rd.sample(ends, 3, solver="ddim", steps=4, init=x1, **QUIET).x.shape == (3, 2)
