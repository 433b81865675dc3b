"""How near synthetic volumes are to real ones, beside how near real ones are to each other."""
