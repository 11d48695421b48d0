"""What is logged and how it is read: transitions, trajectories, features, prompts."""
