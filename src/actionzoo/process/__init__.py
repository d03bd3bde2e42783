"""How a command runs: its errors, its signals, its descendants, its progress."""
