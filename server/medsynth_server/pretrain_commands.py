"""`medsynth-server pretrain ...`: networks trained on public data alone, as files."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medsynth_common.allocator import keep_freed_memory
from medsynth_common.errors import BadConfig, Problem

if TYPE_CHECKING:
    from medsynth_common.weights.file import Recipe

Format = Annotated[Literal["text", "json"], typer.Option(help="text or json.")]

pretrain = typer.Typer(
    help="Train a network on public data, to be used or shipped as a file.", no_args_is_help=True
)


@pretrain.callback()
def _group() -> None:
    """Train a network on public data, to be used or shipped as a file."""


@pretrain.command()
def anatomy(
    out: Annotated[Path, typer.Option(help="NAME.safetensors; its recipe goes to NAME.json.")],
    form: Annotated[
        Literal["plain", "pix2pix"],
        typer.Option(help="A segmentation, or label generator and PatchGAN."),
    ] = "plain",
    public: Annotated[
        list[Path] | None,
        typer.Option(help="Folders of label maps, images beside them, that are said to be public."),
    ] = None,
    phantoms: Annotated[int, typer.Option(min=1, max=10_000, help="Heads drawn.")] = 120,
    steps: Annotated[int, typer.Option(min=1, max=1_000_000, help="Training steps.")] = 600,
    crop: Annotated[int, typer.Option(min=16, max=256, help="Side of a crop, in 2 mm.")] = 48,
    batch: Annotated[int, typer.Option(min=1, max=64, help="Crops a step.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=2**62 - 1, help="The same seed, the same.")] = 11,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that draw heads.")] = 2,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    format: Format = "text",
) -> None:
    """Train the network that finds a patient's tissues from whatever contrasts there are.

    Heads are procedural phantoms, painted with random contrasts, and those of folders that say in
    a LABELS.toml that they are public. Stopped, the same command goes on.

    Example: medsynth-server pretrain anatomy --out anatomy.safetensors --public atlas
    """
    import torch

    from medsynth_server.anatomy.pretrain import AnatomyPlan, pretrain_anatomy
    from medsynth_server.arm import choose_device

    _check_name(out)
    plan = AnatomyPlan(form=form, phantoms=phantoms, steps=steps, crop=crop, batch=batch, seed=seed)
    if crop % plan.network.multiple:
        wanted = f"a multiple of {plan.network.multiple}"
        raise BadConfig(Problem(name="--crop", value=str(crop), wanted=wanted))
    torch.set_num_threads(1)  # sums change with their number, and these nets gain little by more
    keep_freed_memory()
    recipe = pretrain_anatomy(
        plan, out, public=public or (), workers=workers, device=choose_device(device)
    )
    typer.echo(_told(out, recipe, as_json=format == "json"))


@pretrain.command()
def models(
    out: Annotated[Path, typer.Option(help="NAME.safetensors; its recipe goes to NAME.json.")],
    seed: Annotated[
        int, typer.Option(min=0, max=2**62 - 1, help="The same seed, the same.")
    ] = 2026,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that draw heads.")] = 2,
    format: Format = "text",
) -> None:
    """Train generator, critic and segmenter as they are shipped, and measure what goes with them.

    They see procedural phantoms of randomised scanners and nothing else; a quarter of an hour of
    one core. Runs of these sizes start from the shipped file and need not train it again.

    Example: medsynth-server pretrain models --out models.safetensors
    """
    import torch

    from medsynth_server.shipped import make_models

    _check_name(out)
    torch.set_num_threads(1)  # as above
    keep_freed_memory()
    recipe = make_models(out, seed=seed, workers=workers)
    typer.echo(_told(out, recipe, as_json=format == "json"))


def _check_name(out: Path) -> None:
    if out.suffix != ".safetensors":
        wanted = "a name that ends in .safetensors"
        raise BadConfig(Problem(name="--out", value=str(out), wanted=wanted))


def _told(out: Path, recipe: "Recipe", *, as_json: bool) -> str:
    if as_json:
        return json.dumps({"weights": str(out), **recipe.model_dump(mode="json")}, indent=2)
    return f"{out}: {recipe.network}, sha256 {recipe.sha256}"
