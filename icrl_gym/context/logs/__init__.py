"""Other people's logs as the arrays of a trajectory, and what had to be assumed about them.

Columns with names (`columns`) come from files, frames and datasets; `assembly` makes of them one transition per row.
Minari's datasets and the buffers of Stable-Baselines3 know more than columns do, and have modules of their own. Nothing
here knows `Trajectory`, whose ``from_...`` methods call these modules. pyarrow, h5py and minari are imported inside the
functions that need them.
"""
