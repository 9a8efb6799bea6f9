"""The parts that experiments share: the command, rows of one seed, and one module for pages of results."""
