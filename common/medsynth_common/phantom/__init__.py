from medsynth_common.phantom.imaging import image
from medsynth_common.phantom.phantom import Phantom, make_phantom
from medsynth_common.phantom.scanner import SITE_SCANNERS, Scanner, random_scanner
from medsynth_common.phantom.subject import draw_labels

__all__ = [
    "SITE_SCANNERS",
    "Phantom",
    "Scanner",
    "draw_labels",
    "image",
    "make_phantom",
    "random_scanner",
]
