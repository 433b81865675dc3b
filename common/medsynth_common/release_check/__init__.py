"""Is a synthetic set free of copies and of signs of who was trained on? Used by both wings."""

from medsynth_common.release_check.check import check_release
from medsynth_common.release_check.result import ReleaseCheck, Verdict

__all__ = ["ReleaseCheck", "Verdict", "check_release"]
