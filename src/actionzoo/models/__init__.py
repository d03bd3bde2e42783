"""The networks, readable beside their papers. Needs torch and nothing else."""
