"""`python -m medsynth_server`, the same as `medsynth-server`."""

from medsynth_server.cli import main

main()
