"""The reproduction of PSEC (arXiv 2502.05932): its scenarios on simulators that install today."""
