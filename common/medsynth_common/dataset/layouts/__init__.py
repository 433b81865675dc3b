"""How hospitals and public data sets lay out their files: one small file each, one result."""
