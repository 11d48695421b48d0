"""Error against the length of the context, up to and beyond the number of steps that the critic was trained with."""
