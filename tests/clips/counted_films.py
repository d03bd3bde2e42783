"""Films whose frames say which one they are: ten squares, black or white, are the frame's number in binary."""

import subprocess
from pathlib import Path

import numpy as np

from actionzoo.kinetics.transcode import find_ffmpeg

HEIGHT, WIDTH, BITS = 64, 160, 10


def picture(number: int) -> np.ndarray:
    """uint8 RGB (HEIGHT, WIDTH, 3): the number's squares above, grey below."""
    frame = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    bits = [number >> bit & 1 for bit in range(BITS)]
    frame[: HEIGHT // 2] = np.repeat(np.array(bits, np.uint8) * 255, WIDTH // BITS)[None, :, None]
    return frame


def number_of(frame: np.ndarray) -> int:
    """The number that is written on a frame of any quality."""
    height, width = frame.shape[:2]
    places = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
    return sum(int(level > 127) << bit for bit, level in enumerate(frame[height // 4, places].mean(axis=1)))


def film(folder: Path, num_frames: int, *options: str, ending: str = "mp4") -> bytes:
    """An encoded film of that many frames, 25 a second; `options` are ffmpeg's for the output."""
    path = folder / f"film.{ending}"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-r", "25", "-i", "-"]
    frames = np.stack([picture(number) for number in range(num_frames)])
    command = [find_ffmpeg(), "-v", "error", "-y", *source, *options, str(path)]
    subprocess.run(command, input=frames.tobytes(), check=True, timeout=120)
    return path.read_bytes()


def cut_without_decoding(folder: Path, data: bytes, start_seconds: float) -> bytes:
    """What `ffmpeg -ss … -c copy` makes: more packets than there are frames to be shown."""
    before, after = folder / "before.mp4", folder / "after.mp4"
    before.write_bytes(data)
    command = [find_ffmpeg(), "-v", "error", "-y", "-ss", str(start_seconds), "-i", before, "-c", "copy", after]
    subprocess.run(command, check=True, timeout=120)
    return after.read_bytes()
