"""The hospital: holds the patients, trains on them, and lets only privatised weights out."""
