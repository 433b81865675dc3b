"""What a reader looks up: settings, versions, and the words that were used."""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from medsynth_common import __version__
from medsynth_server.report.folder import RunFolder
from medsynth_server.report.section import Section

_PACKAGES: Final = (
    "torch",
    "monai",
    "opacus",
    "flwr",
    "numpy",
    "scipy",
    "nibabel",
    "pydantic",
    "safetensors",
    "cryptography",
    "grpcio",
    "matplotlib",
)

_GLOSSARY: Final = {
    "Federated training": "Each hospital trains on its own patients; a coordinator combines what "
    "they learnt. Images stay at the hospital, model updates travel.",
    "Generator": "A network that draws the four MR contrasts from a label map.",
    "Segmenter": "A network that finds the tumour in the four MR contrasts.",
    "Critic (discriminator)": "A network that tells synthetic from real images, so that the "
    "generator learns to do better. It never leaves its hospital.",
    "Label map": "A volume that says which tissue each voxel is.",
    "Synthetic image": "An image that the generator drew. It is not meant to show any patient; how "
    "much it may still tell about the patients behind it is what ε limits.",
    "Phantom": "A brain drawn by a procedure instead of measured in a patient.",
    "T1, T1 + gadolinium, T2, FLAIR": "The four MR contrasts. After gadolinium, enhancing tumour "
    "is bright on T1; on FLAIR, fluid is dark and oedema is bright.",
    "Whole tumour, tumour core, enhancing tumour": "Nested regions: all of the lesion with its "
    "oedema; without the oedema; only the part that takes up contrast agent.",
    "Dice": "Overlap of the segmenter's tumour with the true one: 0 none, 1 perfect.",
    "Mean ± SD": "Average over patients, and how far patients typically are from it.",
    "Federated (in the Dice table)": "A segmenter that the hospitals trained together.",
    "Synthetic only (in the Dice table)": "A segmenter that never saw a real image, only synthetic "
    "ones.",
    "Before training": "The same networks after pre-training on public data, before any hospital "
    "took part.",
    "ε (epsilon)": "How much taking part may show. If one patient is added or removed, no result "
    "gets more likely than by a factor of e to the ε, but for the small chance δ. Smaller is "
    "more private: by a common rule of thumb (Ponomareva et al. 2023) up to 1 is strong, up to 10 "
    "reasonable, more is weak.",
    "δ (delta)": "A small probability that the bound of ε does not speak for.",
    "Unit: patient": "The bound is about a whole patient: all visits, slices and crops together.",
    "Cap": "The most ε that a hospital allows for its data, over all runs.",
    "Mechanism": "One way in which something leaves a hospital, with its own noise.",
    "Clip": "The most that one patient may change an update, before noise is added.",
    "Noise multiplier": "The noise's standard deviation, as a multiple of the clip. More noise, "
    "smaller ε.",
    "Sampling rate": "The chance of each patient to take part in one step.",
    "Moments": "Average and spread of each tissue's brightness, released once with noise.",
    "Seeded": "The random numbers can be replayed. Good for tests, wrong for a release.",
}


def settings(folder: RunFolder) -> Section:
    """Show the run's configuration as the tree it is."""
    title = "Settings"
    if folder.settings is None:
        return Section(name="settings", title=title, missing="There is no config.toml.")
    return Section(name="settings", title=title, facts={"tree": _tree(folder.settings)})


def versions(_: RunFolder) -> Section:
    """Show what is installed where the report was made."""
    installed = {"medsynth": __version__, "Python": platform.python_version()}
    installed |= {name: found for name in _PACKAGES if (found := _version(name))}
    return Section(
        name="versions",
        title="Versions",
        facts={"installed": installed, "machine": f"{platform.system()} {platform.machine()}"},
    )


def glossary(_: RunFolder) -> Section:
    """Explain the words."""
    return Section(name="glossary", title="Glossary", facts={"words": _GLOSSARY})


def _tree(table: Mapping[str, object]) -> dict[str, object]:
    """Turn a table into text leaves, tables of tables staying tables."""
    return {
        key: _tree(value) if isinstance(value, Mapping) else _leaf(value)
        for key, value in table.items()
    }


def _leaf(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
