"""Editing label maps: what would this brain look like with another tumour, or with none?"""

from medsynth_common.edit_kind import EditKind
from medsynth_common.editing.edits import Edit, apply, apply_all
from medsynth_common.editing.policy import draw_edits

__all__ = ["Edit", "EditKind", "apply", "apply_all", "draw_edits"]
