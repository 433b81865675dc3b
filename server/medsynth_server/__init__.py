"""The coordinator: asks sites for updates, combines them, and makes synthetic volumes."""
