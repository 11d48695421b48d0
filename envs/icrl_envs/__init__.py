"""Environments of the icrl_gym project, registered as ``icrl/...-v0``."""
