"""What a stage does with a model: train, evaluate, benchmark, reproduce."""
