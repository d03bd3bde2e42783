"""What every floor needs of files and no subject owns: whole writes, hashes, locks, bounded reading."""
