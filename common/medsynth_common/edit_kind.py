"""The kinds of edits, by the names that a person types; `editing` says what each does."""

from enum import StrEnum


class EditKind(StrEnum):
    """What a person may ask for; its parameters are drawn anew for every label map."""

    LARGER = "larger"
    SMALLER = "smaller"
    MOVED = "moved"
    MIRRORED = "mirrored"
    ROTATED = "rotated"
    REMOVED = "removed"
    INSERTED = "inserted"
    VENTRICLES = "ventricles"
    SEVERAL = "several"
    RANDOM = "random"
