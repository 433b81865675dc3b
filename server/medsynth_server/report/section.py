"""What a section of the report is.

A new section is three small things: a function from `RunFolder` to `Section` in `sections/`, a
template of the same name in `templates/`, and its place in `contents.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from medsynth_server.report.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Section:
    """One section, ready to be laid out.

    Attributes:
        name: its anchor in the page, and its template `templates/<name>.html.j2`.
        title: its heading.
        facts: what its template shows.
        missing: what the record lacks for it, in plain words; it is shown instead of the template.

    """

    name: str
    title: str
    facts: Mapping[str, object] = field(default_factory=dict)
    missing: str = ""


#: None for what a run need not have.
MakeSection = Callable[[RunFolder], Section | None]
