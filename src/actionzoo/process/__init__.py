"""How a command runs: its end, its signals, its progress."""
