"""Plans and updates on the wire: their bytes, their Flower records, and the trainer's gRPC."""
