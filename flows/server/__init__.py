"""A Prefect server on this machine: its key, its guard, its work pool, and its flow runs."""
