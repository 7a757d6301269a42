"""`retrodict restore`: words as operators, posteriors against closed forms, folders that say what they hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributions import Normal
from typer.testing import CliRunner

import retrodict as rd
from retrodict.app import cli
from retrodict.app.restore import posterior
from retrodict.app.restore.posterior import Restored, restore
from retrodict.app.restore.words import as_picture, parse_operator, read_measurement
from retrodict.core.errors import InputError

SHAPE = (1, 8, 8)


def images(n: int = 2) -> torch.Tensor:
    return 16 * torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(0))


# -- words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("half:bottom", rd.operators.half("bottom")),
        ("blur:5,1.0", rd.operators.gaussian_blur(5, 1.0)),
        ("blur:5:1.0", rd.operators.gaussian_blur(5, 1.0)),
        ("blur:sigma=1.5,kernel=3", rd.operators.gaussian_blur(3, 1.5)),
        ("motion-blur:3,45", rd.operators.motion_blur(3, 45)),
        ("box:1,2,3,4 | projections:7,seed=3", rd.operators.box(1, 2, 3, 4) | rd.operators.random_projections(7, 3)),
        ("random:0.25,1", rd.operators.random_mask(0.25, 1)),
        ("downsample:4", rd.operators.downsample(4)),
        ("super-resolution:2,bilinear", rd.operators.super_resolution(2, "bilinear")),
        ("identity", rd.operators.identity()),
        ("jpeg:20", rd.operators.quantise(20, 0, 16)),
        ("nonlinear-blur:3,1", rd.operators.nonlinear_blur(3, 1.0, low=0, high=16)),
        ("clip:3", rd.operators.clip(3.0, 0, 16)),
        ("phase:oversample=4", lambda x: rd.operators.phase_retrieval(4)(x / 16)),
    ],
)
def test_words_are_operators(text: str, wanted) -> None:
    x = images()
    torch.testing.assert_close(parse_operator(text, 0, 16)(x), wanted(x))


def test_black_and_white_are_the_models() -> None:
    """On images from -1 to 1 the operators that know of black and white do what they do from 0 to 16."""
    x = images()
    for text in ("jpeg:20", "clip:3", "phase", "nonlinear-blur:3"):
        seen, other = parse_operator(text, 0, 16)(x), parse_operator(text, -1, 1)(x / 8 - 1)
        torch.testing.assert_close(seen if text == "phase" else seen / 8 - 1, other, atol=1e-4, rtol=1e-4)


def test_masks_kernels_and_matrices_come_from_files(tmp_path: Path) -> None:
    x = images()
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[2:5] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    np.save(tmp_path / "mask.npy", mask > 0)
    for name in ("mask.png", "mask.npy"):
        assert torch.equal(parse_operator(f"inpaint:{tmp_path / name}", 0, 16)(x), x[:, 0, 2:5].flatten(1))
    kernel = np.array([[0, 2.0, 0], [1, 3, 0], [0, 0, 0]])
    np.save(tmp_path / "kernel.npy", kernel)
    torch.testing.assert_close(
        parse_operator(f"convolve:{tmp_path / 'kernel.npy'}", 0, 16)(x), rd.operators.convolve(kernel / 6)(x)
    )
    np.save(tmp_path / "matrix.npy", np.ones((2, 64)))
    torch.testing.assert_close(parse_operator(f"matrix:{tmp_path / 'matrix.npy'}", 0, 16)(x)[:, 0], x.sum((1, 2, 3)))


def test_a_measurement_is_read_from_an_image() -> None:
    x = images(1)
    blur, half = rd.operators.gaussian_blur(3), rd.operators.half("bottom")
    assert torch.equal(read_measurement(blur, x, SHAPE), x)
    assert torch.equal(read_measurement(half, x, SHAPE), half(x)), "a picture with a hole"
    assert torch.equal(read_measurement(blur | half, x, SHAPE), half(x)), "a blurred picture with a hole"
    assert torch.equal(read_measurement(half, half(x), SHAPE), half(x))
    with pytest.raises(InputError, match=r"shape \(1, 8, 8\).*\(1, 4, 4\).*--degrade"):
        read_measurement(rd.operators.downsample(2), x, SHAPE)
    shown = as_picture(blur | half, half(x), SHAPE, 8.0)
    assert shown is not None
    assert torch.equal(shown[..., :4, :], x[..., :4, :]) and bool((shown[..., 4:, :] == 8).all())
    assert as_picture(rd.operators.random_projections(3), torch.ones(1, 3), SHAPE, 8.0) is None


# -- the posterior ----------------------------------------------------------------------------------------------


def gaussian() -> tuple[rd.Denoiser, torch.Tensor, torch.Tensor]:
    """A Gaussian prior in 4 dimensions: its denoiser, mean and covariance."""
    root = torch.tensor([[1.0, 0, 0, 0], [0.6, 0.8, 0, 0], [-0.5, 0.2, 0.7, 0], [0.3, 0.3, -0.4, 0.6]]).double()
    mean, cov = torch.tensor([0.5, -0.2, 0.0, 1.0]).double(), root @ root.T
    return rd.exact.GaussianMixture([1.0], mean[None], cov[None]).denoiser(rd.VP("cosine")), mean, cov


def test_a_posterior_that_is_known() -> None:
    """Mean, spread, quantiles and evidence of a linear-Gaussian posterior, from four pooled populations of 250.

    1,000 weighted draws: the mean within .15 and the spread within 15% of a standard deviation are four standard
    errors or more, for any of 4 coordinates; the plan's 60 steps leave a bias below that.
    """
    denoiser, mean, cov = gaussian()
    A, y, noise = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, -1.0]]).double(), torch.tensor([1.2, -0.3]), 0.4
    found = restore(denoiser, y, A, noise, populations=4, particles=250, steps=60, seed=1)
    S = A @ cov @ A.T + noise**2 * torch.eye(2).double()
    gain = cov @ A.T @ torch.linalg.inv(S)
    wanted, spread = mean + gain @ (y - A @ mean), (cov - gain @ A @ cov).diagonal().sqrt()
    assert found.correction == "weighted" and len(found.ess) == 4
    assert float(((found.mean - wanted) / spread).abs().max()) < 0.15
    assert float((found.spread / spread - 1).abs().max()) < 0.15
    low, high = found.interval(0.8)
    law = Normal(wanted, spread)
    assert float((law.cdf(low.double()) - 0.1).abs().max()) < 0.05
    assert float((law.cdf(high.double()) - 0.9).abs().max()) < 0.05
    evidence = torch.distributions.MultivariateNormal(A @ mean, S).log_prob(y.double())
    assert found.log_evidence == pytest.approx(float(evidence), abs=0.15)
    draws = found.draws(4000, seed=3)
    assert float(((draws.mean(0) - wanted) / spread).abs().max()) < 0.2
    assert not torch.equal(draws, found.draws(4000, seed=4))


def test_populations_have_the_same_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two populations whose evidence is 3 to 1, with known weights inside: by hand."""
    given = iter([(torch.log(torch.tensor([0.25, 0.75])), 3.0), (torch.zeros(2), 1.0)])

    def sample(denoiser, n, **words):
        log_w, evidence = next(given)
        x = torch.full((n, 1), float(words["seed"] > 0))
        ess = torch.ones(1)
        evidence = torch.tensor([evidence]).double().log()
        return rd.Samples(x, None, 1, 1, "weighted", log_w.double(), evidence, ess)  # type: ignore[arg-type]

    monkeypatch.setattr(posterior.rd, "sample", sample)
    found = restore(gaussian()[0], torch.zeros(4), None, 1.0, populations=2, particles=2)
    torch.testing.assert_close(found.weights, torch.tensor([0.125, 0.375, 0.25, 0.25]).double())
    assert float(found.mean) == pytest.approx(0.5)
    assert found.log_evidence == pytest.approx(np.log(2))
    assert found.populations == pytest.approx(1 / (0.75**2 + 0.25**2))
    assert found.ess == pytest.approx([1 / (0.25**2 + 0.75**2), 2.0])


def test_intervals_are_weighted_quantiles() -> None:
    x = torch.arange(101.0)[:, None]
    found = Restored(x, torch.full((101,), 1 / 101).double(), [101.0], 1.0, None, "none", "")
    low, high = found.interval(0.9)
    assert (float(low), float(high)) == (4, 96)
    heavy = Restored(x, torch.tensor([0.5] + [0.005] * 100).double(), [1.0], 1.0, None, "none", "")
    assert float(heavy.interval(0.9)[0]) == 0 and float(heavy.interval(0.9)[1]) == pytest.approx(90, abs=1)
    assert found.covers(torch.tensor([96.0])).all() and not found.covers(torch.tensor([97.0])).any()


def test_a_method_without_weights_says_so() -> None:
    denoiser, _, _ = gaussian()
    found = restore(denoiser, torch.zeros(4), None, 1.0, method="diffpir", populations=2, particles=8, steps=5)
    assert found.correction == "none" and found.log_evidence is None
    torch.testing.assert_close(found.weights, torch.full((16,), 1 / 16).double())


# -- the command ------------------------------------------------------------------------------------------------


def command(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has hardly learned: what is written must still be what was found."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    network = {"channels": [8, 8], "blocks": 1, "attention": []}
    words = {"steps": 2, "batch_size": 16, "progress": False, "device": "cpu", "network_options": network}
    rd.fit(rd.VP("cosine"), "digits", out=folder, **words)
    return folder


FEW = ["--populations", "2", "--particles", "8", "--steps", "5", "--samples", "3", "--device", "cpu"]


def test_a_folder_holds_what_was_found(model: Path, tmp_path: Path) -> None:
    """Files agree with each other and with the data; the measurement, given by itself, is restored alike."""
    out, again = tmp_path / "out", tmp_path / "again"
    words = ["--operator", "half:bottom | projections:20", "--noise", "0.1", "--model", model, *FEW]
    status, text = command("restore", "digits", *words, "--out", out, "-n", 2)
    assert status == 0, text
    arrays = {name: np.load(out / f"{name}.npy") for name in ("samples", "mean", "spread", "measurement")}
    assert arrays["samples"].shape == (2, 3, *SHAPE) and arrays["spread"].min() >= 0
    held = rd.load_data("digits").heldout
    assert held is not None
    truth = held.x[:2].float()
    found = json.loads((out / "results.json").read_text())
    errors = [float((torch.from_numpy(arrays["mean"]) - truth)[i].pow(2).mean().sqrt() / 16) for i in range(2)]
    assert [n["rmse"] for n in found["images"]] == pytest.approx(errors, rel=1e-4)
    assert [n["psnr"] for n in found["images"]] == pytest.approx([-20 * np.log10(e) for e in errors], rel=1e-4)
    assert found["summary"]["coverage"] == pytest.approx(np.mean([n["coverage"] for n in found["images"]]))
    seen = parse_operator("half:bottom | projections:20", 0, 16)(truth)
    noise = (torch.from_numpy(arrays["measurement"]) - seen) / 1.6
    assert 0.6 < float(noise.std()) < 1.4, "40 normals: within 4 standard errors of 1"
    page = (out / "report.html").read_text()
    assert "Restored" in page and "Coverage" in page and "half:bottom | projections:20" in page
    for name in ("samples", "mean", "spread"):
        assert Image.open(out / f"{name}.png").size[0] >= 64
    assert command("restore", out / "measurement.npy", *words, "--out", again)[0] == 0
    assert np.array_equal(np.load(again / "samples.npy"), arrays["samples"])
    unknown = json.loads((again / "results.json").read_text())
    assert "rmse" not in unknown["summary"] and unknown["images"][0]["ess"] == found["images"][0]["ess"]
    assert command("restore", out / "measurement.npy", *words, "--out", again)[0] == 0, "a folder of ours is renewed"


def test_pictures_are_read_in_the_models_units(model: Path, tmp_path: Path) -> None:
    """A folder of image files: 255 is white, which these data call 16."""
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    Image.fromarray(np.stack([pixels] * 3, -1)).save(tmp_path / "in" / "b.png")
    words = ["--operator", "half:top", "--method", "pigdm:gradient=false", "--model", model, *FEW]
    assert command("restore", tmp_path / "in", *words, "--out", tmp_path / "out")[0] == 0
    seen = np.load(tmp_path / "out" / "measurement.npy")
    assert np.allclose(seen[0], pixels[4:].flatten() / 255 * 16, atol=1e-5)
    assert np.allclose(seen[0], seen[1], atol=0.1)
    assert command("restore", tmp_path / "in" / "a.png", *words, "--degrade", "--out", tmp_path / "clean")[0] == 0
    assert "rmse" in json.loads((tmp_path / "clean" / "results.json").read_text())["summary"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["digits", "--operator", "blurr"], "Did you mean 'blur'?"),
        (["digits", "--operator", "blur:x"], "kernel of operator 'blur' is 'x'; it must be a whole number"),
        (["digits", "--operator", "half:down"], "top, bottom, left or right"),
        (["digits", "--operator", "half: | "], "empty part"),
        (["digits", "--operator", "inpaint"], "needs mask"),
        (["digits", "--operator", "inpaint:none.png"], "no file 'none.png'"),
        (["digits", "--operator", "downsample:3"], "(1, 8, 8)"),
        (["digits", "--operator", "half", "--noise", "-1"], "--noise"),
        (["digits", "--operator", "half", "--method", "dsp"], "Did you mean 'dps'?"),
        (["nowhere", "--operator", "half"], "no file or folder 'nowhere'"),
        (["cli.txt", "--operator", "half"], "cannot be read"),
        (["digits", "--operator", "half", "--out", "full"], "holds something else"),
        (["digits", "--operator", "half", "--model", "nowhere"], "neither a run folder nor"),
    ],
)
def test_bad_words_are_one_line(arguments: list[str], part: str, model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RETRODICT_DEBUG", raising=False)
    (tmp_path / "cli.txt").write_text("no image")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    words = arguments if "--model" in arguments else [*arguments, "--model", str(model)]
    result = CliRunner().invoke(cli.app, ["restore", *words])
    lines = [line for line in result.output.splitlines() if line.strip()]
    assert result.exit_code == 2 and len(lines) == 1 and lines[0].startswith("error: "), result.output
    assert part in lines[0]
    assert not (tmp_path / "runs").exists(), "something was written before the error"
