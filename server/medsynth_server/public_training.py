"""Step public: what is trained on phantoms at the coordinator; it costs no privacy."""

from medsynth_server.arm import choose_device
from medsynth_server.checkpoint import Checkpoint
from medsynth_server.config import RunConfig
from medsynth_server.federation import Federation
from medsynth_server.model import Model
from medsynth_server.progress import Progress
from medsynth_server.public_pool import draw_pools
from medsynth_server.record import Arm, NoteEvent, RunLog
from medsynth_server.run_folder import RunFolder
from medsynth_server.shipped import shipped_model
from medsynth_server.stages.pretrain import PretrainStage


def train_publicly(
    config: RunConfig, folder: RunFolder, *, seed: int, log: RunLog, progress: Progress
) -> Model:
    """Train on public phantoms, or go on, or take what is shipped; every arm starts from it."""
    settings = config.pretrain
    checkpoint = Checkpoint(folder.checkpoint("public"))
    start = Model.fresh(config.networks, seed=seed % 2**63)
    model, done = checkpoint.load(start)
    if done.covers(PretrainStage.name, settings.rounds):
        return model
    if config.starts_shipped:
        model = shipped_model()
        log.append(NoteEvent(text="Public weights are those that come with medsynth."))
        # A run that goes on keeps its start, whatever a newer medsynth ships.
        checkpoint.store(model, done.with_stage(PretrainStage.name, settings.rounds))
        return model
    progress.note("drawing public phantoms of randomised scanners")
    pools = draw_pools(
        seed=seed,
        scanners=settings.scanners,
        phantoms=settings.phantoms,
        grid=config.grid,
        workers=config.workers,
    )
    device = choose_device(config.device)
    stage = PretrainStage(settings, pools, crop=config.crop, seed=seed, device=device)
    return Federation(
        arm=Arm.PRIVATE,
        stages=[stage],
        grid=None,
        checkpoint=checkpoint,
        log=log,
        progress=progress,
        deadline=config.federation.deadline,
    ).run(start)
