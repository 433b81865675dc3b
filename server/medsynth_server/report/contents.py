"""The report's table of contents: which sections, in which order."""

from typing import Final

from medsynth_server.report.section import MakeSection
from medsynth_server.report.sections.accuracy import accuracy
from medsynth_server.report.sections.appendix import glossary, settings, versions
from medsynth_server.report.sections.fidelity import fidelity
from medsynth_server.report.sections.intensities import intensities
from medsynth_server.report.sections.learning import learning
from medsynth_server.report.sections.privacy import privacy
from medsynth_server.report.sections.release import release
from medsynth_server.report.sections.samples import samples
from medsynth_server.report.sections.summary import summary
from medsynth_server.report.sections.table import table
from medsynth_server.report.sections.trust import trust

SECTIONS: Final[tuple[MakeSection, ...]] = (
    summary,
    trust,
    samples,
    fidelity,
    accuracy,
    table,
    privacy,
    release,
    intensities,
    learning,
    settings,
    versions,
    glossary,
)
