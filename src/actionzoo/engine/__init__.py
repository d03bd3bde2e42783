"""Training, evaluation and benchmarks of an nn.Module on loaders of clips. They need Python and torch, nothing else."""
