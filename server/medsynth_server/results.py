"""What a run is for: the final weights and the synthetic set."""

from collections.abc import Sequence

from medsynth_common.durable import write_bytes
from medsynth_common.tensors import pack
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
    *,
    seed: int,
    progress: Progress,
) -> None:
    """Write weights and synthetic set, once; the set has the styles of these sites, in turn."""
    if folder.finished("synthesize"):
        return
    progress.note("making the synthetic set")
    for part in ("generator", "segmenter"):
        write_bytes(folder.weights / f"{part}.safetensors", pack(model.part(part)))
    styles = {name: t for name, t in model.tensors.items() if name.startswith("style.")}
    write_bytes(folder.weights / "styles.safetensors", pack(styles))
    write_synthetic_set(
        model,
        sites,
        folder.synthetic,
        count=config.evaluation.synthetic,
        grid=config.grid,
        seed=seed,
        device=choose_device(config.device),
    )
    folder.finish("synthesize")
