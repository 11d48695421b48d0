"""Logs of experience and how they are read: transitions, trajectories, features, prompts."""
