"""How fast it is: beside the same work without privacy, without a federation, without a disk."""
