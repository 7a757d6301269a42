"""Pipelines of diffusers from a folder: the same samples from our side, and what is not loaded.

Every pipeline is built here, saved, loaded by diffusers and run with its own scheduler; `from_diffusers` of the same
folder, on the plan of the same solver and from the same start, must end in the same state.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers as hf
import numpy as np
import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError, InputTypeError, MissingExtraError
from retrodict.denoisers.diffusers import encode_prompt, from_diffusers
from retrodict.denoisers.diffusers.models import unpack
from tiny_pipelines import (
    SD,
    close,
    dit,
    flux,
    noise,
    quiet,
    seeded,
    stable_diffusion,
    stable_diffusion_3,
    states,
    unet,
)

# -- folders: the pipeline's samples, from our side ------------------------------------------------------------------

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {
        "ddim": quiet(hf.DDIMPipeline(unet(), hf.DDIMScheduler(clip_sample=False))),
        "sd": stable_diffusion(hf.DPMSolverMultistepScheduler(steps_offset=1, **SD)),
        "dit": dit(),
        "sd3": stable_diffusion_3(),
        "flux": flux(),
    }
    root = tmp_path_factory.mktemp("pipelines")
    for name, pipe in made.items():
        pipe.save_pretrained(root / name)
    return {name: root / name for name in made}


def test_unconditional_pipeline(folders: dict[str, Path]) -> None:
    pipe = quiet(hf.DDIMPipeline.from_pretrained(folders["ddim"]))
    begin, theirs = states(pipe, batch_size=2, num_inference_steps=10, generator=seeded())
    denoiser = from_diffusers(folders["ddim"])
    plan = rd.plan("ddim", denoiser.process, steps=10, grid=denoiser.grid)
    close(rd.sample(denoiser, 2, plan=plan, init=begin, progress=False).x, theirs, 2e-5)


def test_single_model_folder_finds_its_scheduler(folders: dict[str, Path]) -> None:
    whole, part = from_diffusers(folders["ddim"]), from_diffusers(folders["ddim"] / "unet")
    also = from_diffusers(folders["ddim"] / "unet", scheduler=folders["ddim"] / "scheduler")
    x = noise(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(whole(x, 0.4), part(x, 0.4)) and torch.equal(whole(x, 0.4), also(x, 0.4))


def test_text_pipeline_with_guidance(folders: dict[str, Path]) -> None:
    """Classifier-free guidance with the empty prompt as null, as StableDiffusionPipeline does it."""
    pipe = quiet(hf.StableDiffusionPipeline.from_pretrained(folders["sd"], safety_checker=None))
    begin, theirs = states(
        pipe,
        prompt=["a cat", "red dog"],
        num_inference_steps=8,
        guidance_scale=4.0,
        height=16,
        width=16,
        output_type="latent",
        generator=seeded(),
    )
    for denoiser in (from_diffusers(pipe), from_diffusers(folders["sd"], nulls=encode_prompt(pipe, ""))):
        plan = rd.plan("dpm++2m", denoiser.process, grid=denoiser.times(8), final=True)
        words = encode_prompt(pipe, ["a cat", "red dog"])
        ours = rd.sample(denoiser, 2, plan=plan, init=begin, guidance=4.0, progress=False, **words).x
        close(ours, theirs, 5e-5)
    with pytest.raises(InputError, match="needs encoder_hidden_states"):
        from_diffusers(folders["sd"])(begin, 0.5)


def test_class_pipeline_with_guidance(folders: dict[str, Path]) -> None:
    pipe = quiet(hf.DiTPipeline.from_pretrained(folders["dit"]))
    begin, theirs = states(pipe, class_labels=[3, 5], guidance_scale=3.0, num_inference_steps=8, generator=seeded())
    denoiser = from_diffusers(folders["dit"])
    plan = rd.plan("ddim", denoiser.process, steps=8, grid=denoiser.grid)
    label = torch.tensor([3, 5])
    ours = rd.sample(denoiser, 2, plan=plan, init=begin[:2], guidance=3.0, label=label, progress=False).x
    close(ours, theirs[:2], 5e-5)


def test_sd3_pipeline_with_guidance(folders: dict[str, Path]) -> None:
    pipe = quiet(hf.StableDiffusion3Pipeline.from_pretrained(folders["sd3"], text_encoder_3=None, tokenizer_3=None))
    call = {"prompt": "a cat", "num_inference_steps": 8, "guidance_scale": 4.0, "height": 16, "width": 16}
    begin, theirs = states(pipe, **call, output_type="latent", generator=seeded())
    denoiser = from_diffusers(folders["sd3"], nulls=encode_prompt(pipe, ""))
    assert isinstance(denoiser.process, rd.RectifiedFlow) and denoiser.grid == {"name": "flow", "shift": 3.0}
    plan = rd.plan("ddim", denoiser.process, grid=denoiser.times(8))
    ours = rd.sample(denoiser, 1, plan=plan, init=begin, guidance=4.0, progress=False, **encode_prompt(pipe, "a cat")).x
    close(ours, theirs, 5e-5)


def test_flux_pipeline(folders: dict[str, Path]) -> None:
    pipe = quiet(hf.FluxPipeline.from_pretrained(folders["flux"]))
    call = {"prompt": "a cat", "num_inference_steps": 6, "guidance_scale": 2.5, "height": 16, "width": 32}
    begin, theirs = states(pipe, **call, max_sequence_length=8, output_type="latent", generator=seeded())
    height, width = 8, 16
    denoiser = from_diffusers(folders["flux"], shape=(4, height, width), guidance_scale=2.5)
    mu = 0.5 + (1.15 - 0.5) * (height * width / 4 - 256) / (4096 - 256)
    times = denoiser.times(sigmas=list(np.linspace(1, 1 / 6, 6)), mu=mu)
    plan = rd.plan("ddim", denoiser.process, grid=times)
    ours = rd.sample(
        denoiser,
        1,
        plan=plan,
        init=unpack(begin, height, width),
        progress=False,
        **encode_prompt(pipe, "a cat", max_sequence_length=8),
    )
    close(ours.x, unpack(theirs, height, width), 5e-5)


def test_the_page_runs(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of docs/diffusers.md, from top to bottom, on the text pipeline of this file."""
    shutil.copytree(folders["sd"], tmp_path / "my-pipeline")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "diffusers.md").read_text(), flags=re.M | re.S)
    session: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "diffusers.md", "exec"), session)
    assert len(blocks) == 3 and session["images"].shape == (2, 3, 16, 16) and session["image"].size == (16, 16)


def test_the_example_runs() -> None:
    """Both ways agree, and UniPC is closer to the fine run than DDIM at ten evaluations."""
    spec = importlib.util.spec_from_file_location("both_ways", ROOT / "examples" / "diffusers_both_ways.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    found = example.main()
    assert found["difference"] < 1e-5 and found["errors"]["unipc"] < found["errors"]["ddim"]


def test_gradients_reach_the_state(folders: dict[str, Path]) -> None:
    x = noise(1, 3, 8, 8).requires_grad_()
    from_diffusers(folders["ddim"])(x, 0.5).square().sum().backward()
    assert x.grad is not None and float(x.grad.abs().max()) > 0


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Path:
    quiet(hf.DDIMPipeline.from_pretrained(folders["ddim"])).save_pretrained(tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("name", ["model.bin", "model.ckpt", "model.pt", "model.PTH", "x.pkl"])
def test_pickles_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="is a pickle"):
        from_diffusers(name)


def test_pickled_weights_in_a_folder_are_refused(copy: Path) -> None:
    """An honest pickle, as `save_pretrained` still writes on demand, and one that leaves a mark if it is ever read."""
    part, mark = copy / "unet", copy / "mark"
    (part / "diffusion_pytorch_model.safetensors").unlink()
    unet().save_pretrained(part, safe_serialization=False)
    with pytest.raises(InputError, match="pickles only"):
        from_diffusers(copy)
    (part / "diffusion_pytorch_model.bin").write_bytes(b"cbuiltins\nopen\n(V" + str(mark).encode() + b"\nVw\ntR.")
    with pytest.raises(InputError, match="pickles only"):
        from_diffusers(copy)
    assert not mark.exists()


def test_code_named_by_a_folder_is_refused(copy: Path) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"unet": ["my_unet", "MyUNet"]}))
    (copy / "unet" / "my_unet.py").write_text("raise SystemExit('code was run')")
    with pytest.raises(InputError, match="code of its own"):
        from_diffusers(copy)
    (copy / "model_index.json").write_text(json.dumps(index | {"unet": ["diffusers", "AutoencoderKL"]}))
    with pytest.raises(InputError, match="unknown diffusers model"):
        from_diffusers(copy)


def test_weights_that_do_not_match_are_refused(copy: Path) -> None:
    config = copy / "unet" / "config.json"
    kept = json.loads(config.read_text())
    config.write_text(json.dumps(kept | {"block_out_channels": [8, 24]}))
    with pytest.raises(InputError, match=r"cannot be loaded|do not match"):
        from_diffusers(copy)
    config.write_text(json.dumps(kept | {"num_class_embeds": 4}))
    with pytest.raises(InputError, match="do not match"):
        from_diffusers(copy)
    config.write_text(json.dumps(kept))
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(InputError, match="cannot be loaded"):
        from_diffusers(copy)


def test_unreadable_configurations(copy: Path, tmp_path: Path) -> None:
    (copy / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        from_diffusers(copy)
    (copy / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(InputError, match="pass scheduler="):
        from_diffusers(copy)
    with pytest.raises(InputError, match="pass scheduler="):
        from_diffusers(copy / "unet")
    assert from_diffusers(copy, scheduler=hf.DDIMScheduler()).shape == (3, 8, 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="neither a pipeline nor a model"):
        from_diffusers(tmp_path / "empty")
    with pytest.raises(InputError, match="single file"):
        from_diffusers(copy / "unet" / "diffusion_pytorch_model.safetensors")


def test_options_are_checked(copy: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'revision'"):
        from_diffusers(copy, revison="main")
    for bad in ("trust_remote_code", "use_safetensors", "custom_pipeline"):
        with pytest.raises(InputError, match="unknown option"):
            from_diffusers(copy, **{bad: True})
    with pytest.raises(InputError, match="go with a folder"):
        from_diffusers(unet(), scheduler=hf.DDIMScheduler(), revision="main")
    with pytest.raises(InputError, match="pass scheduler="):
        from_diffusers(unet())
    with pytest.raises(InputTypeError, match="a pipeline, a model"):
        from_diffusers(3)


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'retrodict\[diffusers\]'"):
        from_diffusers("some/model")


def test_the_package_does_not_import_diffusers() -> None:
    """An extra is paid for by those who use it."""
    code = "import sys, retrodict, retrodict.denoisers.diffusers; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
