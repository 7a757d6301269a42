"""diffusers both ways: a pipeline's model on our plans, and our plan inside the pipeline.

The pipeline here is a tiny latent text-to-image one with random weights, built from diffusers' own classes and saved to
a folder, so that the example runs in seconds and downloads nothing.  With a trained model only the folder (or the name
on the Hub) changes.

    python examples/diffusers_both_ways.py [folder or Hub id]
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import diffusers
import torch

import retrodict as rd

diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()


def tiny(folder: str) -> None:
    """Write a class-conditional latent pipeline of a few thousand random weights."""
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8
    )
    for parameter in transformer.parameters():  # diffusers starts some layers at zero
        torch.nn.init.normal_(parameter, std=0.1)
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    scheduler = diffusers.DDIMScheduler(clip_sample=False, prediction_type="v_prediction")
    diffusers.DiTPipeline(transformer, vae, scheduler).save_pretrained(folder)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def main(folder: str | None = None) -> dict[str, Any]:
    """Run both ways and report how far they are from each other."""
    if folder is None:
        with tempfile.TemporaryDirectory() as scratch:
            tiny(scratch)
            return main(scratch)
    pipe = diffusers.DiTPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    labels, steps = [207, 360], 10

    # 1. The pipeline with its own scheduler.
    call = {"class_labels": labels, "guidance_scale": 3.0, "num_inference_steps": steps, "output_type": "pt"}
    theirs = pipe(**call, generator=torch.Generator().manual_seed(0)).images

    # 2. Our plan inside the pipeline: any solver, any grid.  The same solver on the same grid is the same picture.
    denoiser = rd.from_diffusers(folder)
    same = rd.plan("ddim", denoiser.process, steps=steps, grid=denoiser.grid)
    pipe.scheduler = same.to_diffusers()
    ours = pipe(**call, generator=torch.Generator().manual_seed(0)).images
    print(f"DDIM in the pipeline, ours against theirs:  {difference(ours, theirs):.1e}")

    # 3. The pipeline's model on our side: conditions, guidance, seeds and plans as for any denoiser.
    samples = rd.sample(denoiser, 2, nfe=steps, guidance=3.0, label=torch.tensor(labels), seed=0, progress=False)
    images = pipe.vae.decode(samples.x / pipe.vae.config.scaling_factor).sample
    print(f"{samples.plan.meta['solver']} on our side: latents {tuple(samples.x.shape)}, images {tuple(images.shape)}")

    # 4. Fewer evaluations: the error against a fine run from the same start, for two plans of ten evaluations.
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    condition = {"init": start, "label": torch.tensor(labels), "progress": False}
    fine = rd.sample(denoiser, 2, plan=rd.plan("unipc", denoiser.process, steps=200), **condition).x
    errors = {}
    for solver in ("ddim", "unipc"):
        run = rd.sample(denoiser, 2, plan=rd.plan(solver, denoiser.process, nfe=10), **condition)
        errors[solver] = difference(run.x, fine)
        print(f"{solver:>6} with 10 evaluations, largest error: {errors[solver]:.4f}")
    return {"difference": difference(ours, theirs), "errors": errors}


if __name__ == "__main__":
    main(*sys.argv[1:2])
