"""Where a round's plans go: to trainers on this machine, or to hospitals."""
