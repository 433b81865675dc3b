"""What a run is for: the final weights and the synthetic set."""

from collections.abc import Sequence
from pathlib import Path

from medsynth_common.durable import write_bytes
from medsynth_common.tensors import pack, with_prefix
from medsynth_server.arm import choose_device
from medsynth_server.config import RunConfig
from medsynth_server.model import Model
from medsynth_server.progress import Progress
from medsynth_server.run_folder import RunFolder
from medsynth_server.synthetic_set import write_synthetic_set


def write_results(
    model: Model,
    sites: Sequence[str],
    config: RunConfig,
    folder: RunFolder,
    target: Path,
    *,
    seed: int,
    progress: Progress,
) -> None:
    """Write weights, and a set in the styles of these sites, in turn, into `target`; once."""
    if folder.finished("synthesize"):
        return
    progress.note("making the synthetic set")
    for part in ("generator", "segmenter"):
        write_bytes(folder.weights / f"{part}.safetensors", pack(model.part(part)))
    styles = {
        name: tensor
        for site in sites
        for name, tensor in with_prefix(f"style.{site}", model.style(site).tensors()).items()
    }
    write_bytes(folder.weights / "styles.safetensors", pack(styles))
    write_bytes(folder.weights / "variation.safetensors", pack(model.part("variation")))
    write_synthetic_set(
        model,
        sites,
        target,
        count=config.evaluation.synthetic,
        grid=config.grid,
        seed=seed,
        device=choose_device(config.device),
    )
    folder.finish("synthesize")
