"""Environments, policies that act in them, and models of Stable-Baselines3."""
