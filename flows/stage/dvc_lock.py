"""Who holds the lock of a DVC repository. DVC holds it while it compares, hashes and stores files."""

from pathlib import Path


def lock_holder(root: Path) -> int | None:
    """Pid of the process that holds the lock; None if none of this machine is known to."""
    try:
        inode = (root / ".dvc" / "tmp" / "lock").stat().st_ino
        lines = Path("/proc/locks").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:  # 1: FLOCK  ADVISORY  WRITE 12345 08:01:4711 0 EOF
        words = line.split()
        if words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode):
            return int(words[4])
    return None


def waits_for(holder: int) -> str:
    """What a process waits for that needs the lock, in words."""
    return f"DVC's lock, which process {holder} holds"
