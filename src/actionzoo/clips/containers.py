"""What kind of file a video is, by its bytes, and what its codec is called. For files from strangers.

decord opens whatever its FFmpeg knows, playlists that name other files and addresses included, and cannot be told to
leave some out. So a file reaches it only if it begins like one of the containers below, and, when it is new here, if
our ffmpeg, which has lists of formats and protocols, has read it through.
"""

import re

from ..kinetics.transcode import BadVideo, measure

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
# FFmpeg finds these words also behind the first bytes of a video
_PLAYLIST = re.compile(
    rb"#EXTM3U|ffconcat version|dash:profile:|<SmoothStreamingMedia|<CompositionPlaylist|\[playlist\]|<smil\b"
    rb"|^c=IN IP[46] ",
    re.IGNORECASE | re.MULTILINE,
)
_PROBED_BYTES = 2**20  # FFmpeg looks no further to tell what a file is (PROBE_BUF_MAX)


def begins_like_video(data: bytes) -> bool:
    """Whether the first bytes are those of one of CONTAINERS. Costs nothing; no playlist passes that is only text."""
    if data[4:8] in _BOXES or data.startswith(_STARTS):
        return True
    if data[:4] == b"RIFF":
        return data[8:11] == b"AVI"
    # a transport stream is packets of 188 bytes, or of 192 with a time before each
    return len(data) > 192 and (data[0] == data[188] == 0x47 or data[4] == data[196 % len(data)] == 0x47)


def speaks_of_playlist(data: bytes) -> bool:
    """Whether the part of the file that FFmpeg looks at has words by which it knows a playlist."""
    return _PLAYLIST.search(data[:_PROBED_BYTES]) is not None


def codec_of(data: bytes, timeout_seconds: float = 60) -> str:
    """ffmpeg's name of the video's codec, e.g. `av1`; `unknown` if ffmpeg cannot read the file either.

    Raises MachineFault.
    """
    try:
        return measure(data, timeout_seconds=timeout_seconds).video or "unknown"
    except BadVideo:
        return "unknown"
