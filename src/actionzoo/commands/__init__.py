"""The commands of `actionzoo`, one file per group; each option stands beside the function that uses it.

Handlers import what they need inside: `actionzoo --help` loads no torch, no MLflow and no pydantic.
An option is a parameter, so some handlers have more than six.
"""
