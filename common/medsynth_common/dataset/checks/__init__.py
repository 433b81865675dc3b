"""The parts of `check`, in the order they run: names, headers, voxels, and patients compared."""
