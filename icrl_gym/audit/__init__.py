"""The audit of a critic while it trains: in-context values and returns against what the critic says."""
