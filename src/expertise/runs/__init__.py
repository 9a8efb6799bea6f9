"""Shared by every training: recipes, checkpoints, the loop, metrics, progress. Imports no model."""
