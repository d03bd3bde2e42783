"""The commands of `actionzoo`, one file per group; each option stands beside the function that uses it.

Handlers import what they need inside: `actionzoo --help` loads no torch, no MLflow and no pydantic.
"""
