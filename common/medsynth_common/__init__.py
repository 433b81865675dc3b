"""What the hospital and the coordinator share: values, privacy, phantoms, networks, wire."""

__version__ = "0.1.0"
