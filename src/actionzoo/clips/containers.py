"""The container of a video, judged by its bytes, and the name of its codec. For untrusted files.

decord opens every format that its FFmpeg knows, including playlists that name other files and addresses, and has no
list of formats to allow. So it gets a file only if the first bytes are those of a container below, and, on import, only
after our own ffmpeg, which has lists of formats and protocols, has decoded it once.
"""

import re

from ..kinetics.ffmpeg_process import BadVideo
from ..kinetics.transcode import measure

CONTAINERS = "mp4, mov, mkv, webm, avi, flv, mpeg, asf, ogg, gif"

_BOXES = frozenset((b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"))
_STARTS = (
    b"\x1aE\xdf\xa3",  # matroska, webm
    b"FLV\x01",
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x00\x00\x01\xb3",  # MPEG video
    b"0&\xb2u\x8ef\xcf\x11\xa6\xd9\x00\xaa\x00b\xcel",  # asf, wmv
    b"OggS",
    b"GIF87a",
    b"GIF89a",
)
# FFmpeg finds these words even after the first bytes of a video
_PLAYLIST = re.compile(
    rb"#EXTM3U|ffconcat version|dash:profile:|<SmoothStreamingMedia|<CompositionPlaylist|\[playlist\]|<smil\b"
    rb"|^c=IN IP[46] ",
    re.IGNORECASE | re.MULTILINE,
)
_PROBED_BYTES = 2**20  # FFmpeg reads this much to recognise a format (PROBE_BUF_MAX)


def begins_like_video(data: bytes) -> bool:
    """Whether the first bytes are those of one of CONTAINERS. Cheap; a playlist of text alone does not pass."""
    if data[4:8] in _BOXES or data.startswith(_STARTS):
        return True
    if data[:4] == b"RIFF":
        return data[8:11] == b"AVI"
    # transport stream: packets of 188 bytes, or of 192 with a timestamp before each
    return len(data) > 192 and (data[0] == data[188] == 0x47 or data[4] == data[196 % len(data)] == 0x47)


def mentions_playlist(data: bytes) -> bool:
    """Whether the part of the file that FFmpeg probes has words by which it recognises a playlist."""
    return _PLAYLIST.search(data[:_PROBED_BYTES]) is not None


def codec_of(data: bytes, timeout_seconds: float = 60) -> str:
    """ffmpeg's name for the video's codec, e.g. `av1`; `unknown` if ffmpeg cannot read the file either.

    Raises MachineFault.
    """
    try:
        return measure(data, timeout_seconds=timeout_seconds).video or "unknown"
    except BadVideo:
        return "unknown"
