"""Tables and pages made of what runs have left behind. Neither torch nor MLflow is needed."""
