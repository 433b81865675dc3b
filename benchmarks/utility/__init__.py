"""How useful a private federation is, beside what would be possible without privacy."""
