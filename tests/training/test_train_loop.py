"""The loop against closed forms and against the same loop written out by hand."""

from __future__ import annotations

import copy
import math
import multiprocessing
import os
import signal
import time

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from retrodict.core.errors import InputError, InputTypeError, NonFiniteError
from retrodict.training import EMA, Checkpoints, IndexStream, RateCurve, read_metrics, train
from retrodict.training.keys import StepKeys, key
from training.train_helpers import denoising, network, points, same_state

QUIET = {"progress": False, "device": "cpu", "precision": "fp32"}


def test_linear_regression_reaches_the_least_squares_solution():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(64, 1, generator=generator, dtype=torch.float64)
    exact = torch.linalg.lstsq(x, y).solution.T
    module = nn.Linear(3, 1, bias=False, dtype=torch.float64)

    def squares(module, batch, generator):
        return (module(batch["x"]) - batch["y"]).square().mean()

    result = train(module, squares, {"x": x, "y": y}, steps=800, batch_size=64, lr=0.05, **QUIET)
    assert (result.raw.weight - exact).abs().max() < 1e-5
    assert (result.module.weight - exact).abs().max() < 1e-3  # the average still remembers the way
    assert result.steps == 800 and not result.interrupted


def test_the_loop_is_the_loop_one_would_write():
    """Every piece by hand, from plain PyTorch: batches, noise, clipping, rate, optimiser, average."""
    data, steps, batch = points(50), 30, 20
    module = network()
    weights = list(module.parameters())
    shadow = copy.deepcopy(module)
    optimizer = torch.optim.AdamW(weights, lr=1.0, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    order = torch.cat(
        [torch.randperm(50, generator=torch.Generator().manual_seed(key(3, "epoch", e))) for e in range(12)]
    )
    generator, keys = torch.Generator(), StepKeys(3, "noise", 0)
    losses = []
    for k in range(steps):
        rate = (k + 1) / 5 if k < 5 else 0.5 * (1 + math.cos(math.pi * (k - 5) / 25))
        optimizer.param_groups[0]["lr"] = 0.02 * rate
        generator.manual_seed(keys(k))
        loss = denoising(module, {"x": data[order[k * batch : (k + 1) * batch]]}, generator)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 0.3)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for s, w in zip(shadow.parameters(), weights):
                s.lerp_(w, 1 - min(0.9, (1 + k) / (10 + k)))
        losses.append(loss.item())

    result = train(
        network(), denoising, {"x": data}, steps=steps, batch_size=batch, lr=0.02, warmup=5, ema=0.9,
        clip=0.3, seed=3, log_every=10, **QUIET,
    )  # fmt: skip
    assert same_state(result.raw, module)
    assert same_state(result.module, shadow)
    means = [sum(losses[i : i + 10]) / 10 for i in (0, 10, 20)]
    assert [r["loss"] for r in result.metrics] == pytest.approx(means, rel=1e-6)


def test_a_batch_computed_in_parts_is_the_same_batch():
    def plain(module, batch, generator):
        return (module(batch["x"]) - 1.0).square().mean()

    def run(accumulate):
        return train(
            network().double(), plain, {"x": points().double()}, steps=20, batch_size=24,
            accumulate=accumulate, **QUIET,
        )  # fmt: skip

    whole, parts = run(1), run(4)
    for a, b in zip(whole.raw.parameters(), parts.raw.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert parts.metrics[-1]["loss"] == pytest.approx(whole.metrics[-1]["loss"], rel=1e-6)
    assert parts.metrics[-1]["grad_norm"] == pytest.approx(whole.metrics[-1]["grad_norm"], rel=1e-6)


def test_every_epoch_sees_every_sample_once():
    stream = IndexStream(7, seed=5)
    read = torch.cat([stream.read(3 * k, 3 * k + 3) for k in range(14)])
    for epoch in range(6):
        assert sorted(read[7 * epoch : 7 * epoch + 7].tolist()) == list(range(7))
    assert torch.equal(stream.read(0, 25), read[:25])  # more than three epochs in one batch
    assert not torch.equal(read[:7], read[7:14])
    assert not torch.equal(IndexStream(7, seed=6).read(0, 7), read[:7])


def test_the_average_is_the_weighted_sum_that_its_formula_says():
    module = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    start = module.weight.item()
    average, values, decays = EMA(module, 0.8), [], []
    for k in range(40):
        with torch.no_grad():
            module.weight.fill_(math.sin(k))
        average.update(k)
        values.append(math.sin(k))
        decays.append(min(0.8, (1 + k) / (10 + k)))
    share = [(1 - d) * math.prod(decays[i + 1 :]) for i, d in enumerate(decays)]
    expected = math.prod(decays) * start + sum(s * v for s, v in zip(share, values))
    assert average.ready().weight.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("decay, end", [("cosine", 0.0), ("linear", 0.0), ("constant", 1.0)])
def test_the_rate_warms_up_and_decays(decay, end):
    curve = RateCurve(100, warmup=10, decay=decay)
    assert [curve(k) for k in range(10)] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert curve(10) == 1.0
    assert curve(100) == pytest.approx(end, abs=1e-12)
    assert curve(55) == pytest.approx(1.0 if decay == "constant" else 0.5)


def test_random_state_stays_in_the_run():
    """Dropout is keyed by the step: the program's own generator neither decides it nor moves."""
    results = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        results.append(train(network(dropout=0.5), denoising, {"x": points()}, steps=5, **QUIET))
        assert torch.equal(before, torch.get_rng_state())
    assert same_state(results[0].raw, results[1].raw)
    other = train(network(dropout=0.5), denoising, {"x": points()}, steps=5, seed=1, **QUIET)
    assert not same_state(other.raw, results[0].raw)


def test_steps_do_not_share_seeds():
    keys = StepKeys(0, "noise", 0)
    assert len({keys(k) for k in range(100_000)}) == 100_000
    assert StepKeys(0, "noise", 1)(0) != keys(0) != StepKeys(0, "data", 0)(0)


class Augmented(Dataset):
    """Each item is jittered by PyTorch's own generator, as image augmentation is."""

    def __init__(self, jitter: float) -> None:
        self.x, self.jitter = points(60), jitter

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index] + self.jitter * torch.randn(2)}


def test_a_data_set_gives_the_batches_that_its_tensor_gives():
    a = train(network(), denoising, Augmented(0.0), steps=12, batch_size=16, **QUIET)
    b = train(network(), denoising, {"x": points(60)}, steps=12, batch_size=16, **QUIET)
    assert same_state(a.raw, b.raw)


def test_augmentation_is_the_same_with_any_number_of_workers():
    runs = [train(network(), denoising, Augmented(1.0), steps=6, batch_size=16, workers=w, **QUIET) for w in (0, 2)]
    plain = train(network(), denoising, Augmented(0.0), steps=6, batch_size=16, **QUIET)
    assert same_state(runs[0].raw, runs[1].raw)
    assert not same_state(runs[0].raw, plain.raw)


def test_ctrl_c_does_not_reach_the_workers():
    """A terminal interrupts all processes; here the workers only, twice, who must go on until the run stops."""
    calls = []

    def interrupting(module, batch, generator):
        calls.append(1)
        if len(calls) in (2, 6):
            workers = multiprocessing.active_children()
            assert len(workers) == 2
            for worker in workers:
                os.kill(worker.pid, signal.SIGINT)
            time.sleep(0.1)
        return denoising(module, batch, generator)

    result = train(network(), interrupting, Augmented(0.0), steps=30, batch_size=4, workers=2, **QUIET)
    assert result.steps == 30


def test_records(tmp_path):
    def with_extras(module, batch, generator):
        loss = denoising(module, batch, generator)
        return {"loss": loss, "twice": 2 * loss, "seven": 7.0}

    result = train(
        network(), with_extras, {"x": points()}, steps=25, batch_size=10, log_every=10, checkpoint_every=25,
        out=tmp_path / "run", tensorboard=True, **QUIET,
    )  # fmt: skip
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert records == result.metrics
    assert [r["step"] for r in records] == [10, 20, 25]
    for record in records:
        assert record["twice"] == pytest.approx(2 * record["loss"], rel=1e-6) and record["seven"] == 7.0
        assert record["samples_per_second"] > 0 and record["grad_norm"] > 0
    assert records[0]["wall"] < records[1]["wall"] < records[2]["wall"]
    assert any((tmp_path / "run" / "tensorboard").iterdir())


def test_validation_sees_the_average_in_evaluation_mode():
    seen = []

    def validate(module):
        seen.append((module.training, torch.is_grad_enabled(), copy.deepcopy(module.state_dict())))
        return {"error": 0.5}

    result = train(
        network(),
        denoising,
        {"x": points()},
        steps=9,
        validate=validate,
        validate_every=3,
        log_every=9,
        **QUIET,
    )
    assert [(training, grad) for training, grad, _ in seen] == [(False, False)] * 3
    assert [r["step"] for r in result.metrics if "validation_error" in r] == [3, 6, 9]
    assert all(torch.equal(v, result.module.state_dict()[k]) for k, v in seen[-1][2].items())
    assert not torch.equal(seen[-1][2]["0.weight"], result.raw.state_dict()["0.weight"])
    plain = train(network(), denoising, {"x": points()}, steps=9, **QUIET)
    assert same_state(plain.raw, result.raw)  # looking does not change the run


def test_bf16_computes_in_bf16_and_keeps_the_weights_in_fp32():
    kinds = []

    def watching(module, batch, generator):
        output = module(batch["x"])
        kinds.append(output.dtype)
        return (output - batch["x"]).square().mean()

    result = train(
        network(), watching, {"x": points()}, steps=40, lr=1e-2, log_every=10, **QUIET | {"precision": "bf16"}
    )
    assert set(kinds) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in result.raw.parameters())
    assert result.metrics[-1]["loss"] < 0.9 * result.metrics[0]["loss"]


def test_runs_leave_the_state_of_accelerate_alone():
    from accelerate import Accelerator

    mine = Accelerator(cpu=True, mixed_precision="no")
    train(network(), denoising, {"x": points()}, steps=1, **QUIET | {"precision": "bf16"})
    assert mine.mixed_precision == "no" and mine.num_processes == 1
    assert Accelerator(cpu=True, mixed_precision="no").mixed_precision == "no"


def test_compiling_changes_neither_weights_nor_module():
    module = network()
    compiled = train(module, denoising, {"x": points()}, steps=4, compile="eager", **QUIET)
    plain = train(network(), denoising, {"x": points()}, steps=4, **QUIET)
    assert same_state(compiled.raw, plain.raw)
    assert module._compiled_call_impl is None


def test_parameters_of_the_loss_are_trained_too():
    class Weighted(nn.Module):
        """Learns the log-variance of its residual, whose optimum is the log of the mean square error."""

        def __init__(self):
            super().__init__()
            self.log_variance = nn.Parameter(torch.tensor(2.0))

        def forward(self, module, batch, generator):
            error = (module(batch["x"]) - batch["x"]).square().mean()
            return {"loss": 0.5 * (error * (-self.log_variance).exp() + self.log_variance), "error": error}

    loss, frozen = Weighted(), network().requires_grad_(False)
    result = train(frozen, loss, {"x": points()}, steps=400, batch_size=200, lr=0.05, log_every=400, ema=None, **QUIET)
    assert math.exp(loss.log_variance.item()) == pytest.approx(result.metrics[-1]["error"], rel=1e-3)
    assert result.module is result.raw


def test_any_optimiser():
    result = train(
        network(), denoising, {"x": points()}, steps=3, warmup=0, decay="constant",
        optimizer=lambda params: torch.optim.RMSprop(params, lr=0.5), log_every=1, **QUIET,
    )  # fmt: skip
    assert [r["lr"] for r in result.metrics] == [0.5, 0.5, 0.5]
    with pytest.raises(InputTypeError, match=r"torch\.optim\.Optimizer"):
        train(network(), denoising, {"x": points()}, steps=1, optimizer=lambda params: 3, **QUIET)


def test_weight_decay_spares_biases():
    def nothing(module, batch, generator):
        return 0.0 * module(batch["x"]).sum()

    before = network()
    after = train(
        network(),
        nothing,
        {"x": points()},
        steps=1,
        lr=0.1,
        weight_decay=1.0,
        warmup=0,
        decay="constant",
        **QUIET,
    ).raw
    torch.testing.assert_close(after[0].weight, 0.9 * before[0].weight)
    assert torch.equal(after[0].bias, before[0].bias)


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_value_that_is_not_finite_stops_the_run(tmp_path, broken):
    calls = []

    def breaking(module, batch, generator):
        calls.append(1)
        loss = denoising(module, batch, generator)
        if len(calls) == 18:  # step 17, counted from 0
            return loss * math.nan if broken == "loss" else loss + (0.0 * loss).sqrt()  # sqrt'(0) is infinite
        return loss

    with pytest.raises(NonFiniteError, match=r"step 17; the last finite loss was \d.*step 15 is intact"):
        train(
            network(),
            breaking,
            {"x": points()},
            steps=40,
            checkpoint_every=5,
            log_every=40,
            out=tmp_path / "run",
            **QUIET,
        )
    kept = Checkpoints(tmp_path / "run" / "checkpoints").latest()
    assert kept.step == 15
    assert all(torch.isfinite(v).all() for v in kept.parts["module"].values())


@pytest.mark.parametrize(
    "given, message",
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": 1.5}, "whole number"),
        ({"batch_size": 10, "accumulate": 3}, "multiple of 3"),
        ({"lr": -1.0}, "lr=-1"),
        ({"ema": 1.0}, "ema=1"),
        ({"clip": 0.0}, "clip=0"),
        ({"warmup": 99}, "warmup=99"),
        ({"decay": "cosin"}, "Did you mean 'cosine'"),
        ({"optimizer": "adam-w"}, "Did you mean 'adamw'"),
        ({"precision": "fp23"}, "Did you mean 'fp32'"),
        ({"precision": "fp16"}, "needs a GPU"),
        ({"device": "gpu"}, "device='gpu'"),
        ({"device": "cuda:7"}, "CUDA devices"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"resume": "maybe"}, "resume='maybe'"),
        ({"resume": True}, "give out="),
        ({"keep": 0, "out": "somewhere"}, "keep=0"),
        ({"log_every": 0}, "log_every=0"),
    ],
)
def test_bad_settings_are_refused_before_work_starts(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def never(module, batch, generator):
        raise AssertionError("work has started")

    with pytest.raises(InputError, match=message):
        train(network(), never, {"x": points()}, **{"steps": 4, **QUIET, **given})


@pytest.mark.parametrize(
    "data, message",
    [
        ({}, "empty mapping"),
        ({"x": torch.zeros(3), "y": torch.zeros(4)}, "one common length"),
        ({"x": torch.zeros(0, 2)}, "at least 1"),
        ({"x": [1, 2]}, "must be a tensor"),
        (7, "map-style"),
    ],
)
def test_bad_data_is_refused(data, message):
    with pytest.raises((InputError, InputTypeError), match=message):
        train(network(), denoising, data, steps=1, **QUIET)


@pytest.mark.parametrize("value", [torch.zeros(3), {"error": torch.zeros(())}, 0.0])
def test_a_loss_that_is_no_scalar_is_refused(value):
    with pytest.raises(InputTypeError, match="the loss returned"):
        train(network(), lambda m, b, g: value, {"x": points()}, steps=1, **QUIET)


def test_a_module_without_parameters_is_refused():
    with pytest.raises(InputError, match="no trainable parameter"):
        train(nn.Identity(), denoising, {"x": points()}, steps=1, **QUIET)


@pytest.mark.slow
def test_compiling_for_real():
    """With the default backend, where a compiler is installed."""
    import shutil

    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler")
    compiled = train(network(), denoising, {"x": points()}, steps=4, compile=True, **QUIET)
    plain = train(network(), denoising, {"x": points()}, steps=4, **QUIET)
    for a, b in zip(compiled.raw.parameters(), plain.raw.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
