"""Diffusion policies for offline reinforcement learning: environments, recorded data, skills that add up."""
