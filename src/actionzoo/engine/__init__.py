"""Learning and testing. Takes an nn.Module, loaders and a log callable; needs torch and nothing else."""
