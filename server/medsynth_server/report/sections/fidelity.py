"""How near synthetic volumes are to real ones, beside how near real ones are to each other."""

from collections.abc import Mapping

from medsynth_server.fidelity.features import Plane
from medsynth_server.fidelity.results import Comparison, FidelityResult
from medsynth_server.record import epsilon_words
from medsynth_server.report.folder import RunFolder
from medsynth_server.report.palette import CONTRAST_WORD, INK, TISSUE_WORD, arm_look
from medsynth_server.report.section import Section

_WORST = 5  # tissues and contrasts that are named


def fidelity(folder: RunFolder) -> Section | None:
    """Show each figure of every generator beside the control; None unless it was asked for."""
    found = folder.fidelity
    if found is None:
        return None
    sets = _sets(found)
    return Section(
        name="fidelity",
        title="How near synthetic volumes are to real ones",
        facts={
            "who": "phantoms" if found.phantoms else "patients",
            "volumes": found.volumes,
            "sets": [(name, colour) for name, colour, _ in sets],
            "rows": _rows([one for *_, one in sets]),
            "sites": _sites(found, [one for *_, one in sets]),
            "worst": {name: _worst(one) for name, _, one in sets},
        },
    )


def _sets(found: FidelityResult) -> list[tuple[str, str, Comparison]]:
    """The control first: what the others are read against."""
    sets = [("real, other half", INK, found.control)]
    for arm, one in found.arms.items():
        epsilon = found.epsilon[arm]
        name = "no privacy" if epsilon is None else f"ε = {epsilon_words(epsilon)}"
        look = arm_look(protected=epsilon is not None)
        sets.append((f"synthetic, {name}", look.colour, one))
    return sets


def _rows(sets: list[Comparison]) -> list[Mapping[str, object]]:
    planes = [
        (f"{name}, {plane} slices", [f"{getattr(s.planes[plane], key):.3f}" for s in sets], wish)
        for name, key, wish in (
            ("Fréchet distance", "frechet", "as the control"),
            ("Kernel distance", "kernel", "0"),
        )
        for plane in Plane
    ]
    others = [
        (
            "Fréchet distance, critic's features",
            [f"{s.critic.frechet:.2f}" for s in sets],
            "control",
        ),
        ("Kernel distance, critic's features", [f"{s.critic.kernel:.3f}" for s in sets], "0"),
        ("Fréchet distance, radiomic features", [f"{s.radiomic:.1f}" for s in sets], "control"),
        ("Precision: looks like a real one", [f"{s.precision:.0%}" for s in sets], "control"),
        ("Recall: a real one is like some", [f"{s.recall:.0%}" for s in sets], "control"),
        ("Density", [f"{s.density:.2f}" for s in sets], "control"),
        ("Coverage", [f"{s.coverage:.0%}" for s in sets], "control"),
        ("MS-SSIM within the set", [f"{s.likeness:.3f}" for s in sets], "control"),
        ("Intensity distance, mean of tissues", [f"{s.intensity:.4f}" for s in sets], "control"),
    ]
    return [
        {"name": name, "figures": figures, "wish": "as the control" if wish == "control" else wish}
        for name, figures, wish in [*planes, *others]
    ]


def _sites(found: FidelityResult, sets: list[Comparison]) -> Mapping[str, list[str]]:
    """Kernel distance and intensity distance of each site, of every set."""
    return {
        site: [
            "-"
            if site not in s.sites
            else f"{s.sites[site].kernel:.3f} / {s.sites[site].intensity:.4f}"
            for s in sets
        ]
        for site in found.control.sites
    }


def _worst(one: Comparison) -> str:
    far = sorted(one.tissues, key=lambda tissue: -tissue.distance)[:_WORST]
    return ", ".join(
        f"{TISSUE_WORD[t.tissue]} in {CONTRAST_WORD[t.contrast]} {t.distance:.3f}" for t in far
    )
