"""The record in MLflow: a copy for looking at. The truth lies in the run folders."""
