"""A trained network applied: predictions, drawn copies, exported files."""
