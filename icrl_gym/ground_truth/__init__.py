"""True values: returns of simulator copies, and exact solves of transition tables."""
