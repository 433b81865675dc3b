"""Patient-level differential privacy: mechanisms, randomness, accounting, private steps."""
