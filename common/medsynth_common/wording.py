"""Words for people that more than one wing writes."""


def counted(number: int, thing: str) -> str:
    """Write a number and its noun, such as "1 patient" or "3 data sets"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
