"""What every training shares: recipes, checkpoints, the loop, metrics, progress. Knows no model."""
