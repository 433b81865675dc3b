"""The table of Shin et al. 2018: segmenters trained on real patients, synthetic ones, or both."""
