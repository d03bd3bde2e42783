"""The networks, readable beside their papers. They need Python and torch, nothing else."""
