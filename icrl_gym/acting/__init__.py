"""Who acts, and where: environments, policies, and models of Stable-Baselines3."""
