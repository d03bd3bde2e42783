"""The record in MLflow: a copy to look at. The run folders hold the truth."""
