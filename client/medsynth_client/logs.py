"""A site's logs: they hold no patient's name.

What goes to standard error goes to the file as well. Errors from inside a plan are logged by
name and place alone (`trainer.py`), since their text may hold a patient's.
"""

from pathlib import Path

from medsynth_common.errors import BadConfig, Problem
from medsynth_common.logs import LogFormat, log_to


def start_logging(folder: Path, process: str, *, format: LogFormat) -> None:
    """Send this process's log to `DIR/logs/PROCESS.log` and to standard error.

    Raises:
        BadConfig: the folder is no site's; a mistyped one is told, not made.

    """
    if not (folder / "site.toml").exists():
        name = str(folder / "site.toml")
        raise BadConfig(Problem(name=name, value="no such file", wanted="a site's own file"))
    log_to(folder, process, package="medsynth_client", format=format, echo=True)
