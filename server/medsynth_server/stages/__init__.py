"""The coordinator's half of each stage: what to ask of sites, what to make of their answers."""
