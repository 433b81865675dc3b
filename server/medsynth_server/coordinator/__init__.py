"""A real federation's coordinator: its folder, its certificates, its door, its round of sites."""
