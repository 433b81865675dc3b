"""`python -m medsynth_client`, the same as `medsynth-client`."""

from medsynth_client.cli import main

main()
