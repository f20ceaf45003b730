import io
from pathlib import Path

import av
import numpy as np
import pytest

from flowhand.pages.video import encode_mp4, write_mp4

RED, BLUE, GRAY = (200, 40, 40), (40, 60, 200), (120, 120, 120)


def moving_square(n: int, height: int, width: int) -> list[np.ndarray]:
    """A red square that moves right by two pixels a frame over a gray floor, with a blue bar at the bottom."""
    frames = []
    for i in range(n):
        frame = np.full((height, width, 3), GRAY, np.uint8)
        frame[-8:] = BLUE
        frame[10:26, 2 * i : 2 * i + 16] = RED
        frames.append(frame)
    return frames


def decode(data: bytes) -> np.ndarray:
    """RGB frames by the BT.709 formulas, because older PyAV decodes every matrix as BT.601."""
    frames = []
    with av.open(io.BytesIO(data), "r") as container:
        for frame in container.decode(video=0):
            planes = frame.to_ndarray(format="yuv420p").astype(float)
            luma, chroma = planes[: frame.height], planes[frame.height :].reshape(2, frame.height // 2, -1)
            y = (luma - 16) / 219
            blue, red = ((chroma - 128) / 224).repeat(2, axis=1).repeat(2, axis=2)
            rgb = [y + 1.5748 * red, y - 0.1873 * blue - 0.4681 * red, y + 1.8556 * blue]
            frames.append(255 * np.stack(rgb, axis=-1))
    return np.stack(frames)


def test_decoded_frames_are_the_frames():
    frames = moving_square(24, 64, 96)
    decoded = decode(encode_mp4(frames, fps=20))
    assert decoded.shape == (24, 64, 96, 3)
    error = np.abs(decoded - np.stack(frames))
    assert error.mean() < 4
    for i, frame in enumerate(decoded):  # the right colour at the right place at the right time
        for patch, colour in ((frame[14:22, 2 * i + 4 : 2 * i + 12], RED), (frame[-5:-2], BLUE)):
            np.testing.assert_allclose(patch.reshape(-1, 3).mean(0), colour, atol=12)


def test_odd_sizes_are_padded_with_the_border():
    frames = moving_square(3, 63, 95)
    decoded = decode(encode_mp4(frames, fps=10))
    assert decoded.shape == (3, 64, 96, 3)
    assert np.abs(decoded[:, :63, :95] - np.stack(frames)).mean() < 4
    np.testing.assert_allclose(decoded[:, 63, :, :].reshape(-1, 3).mean(0), BLUE, atol=12)


def test_browsers_know_the_format():
    with av.open(io.BytesIO(encode_mp4(moving_square(4, 32, 64), fps=20)), "r") as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.colorspace, context.color_range, context.color_primaries) == (1, 1, 1)


@pytest.mark.parametrize("fps", [80, 12.5, 1 / 0.0125, 29.97])
def test_duration_follows_fps(fps: float):
    with av.open(io.BytesIO(encode_mp4(moving_square(16, 32, 64), fps)), "r") as container:
        assert container.duration is not None
        assert container.duration / av.time_base == pytest.approx(16 / fps, rel=0.01)


def test_index_comes_first_and_bytes_repeat(tmp_path: Path):
    frames = moving_square(12, 64, 96)
    data = encode_mp4(frames, fps=20)
    assert data[4:8] == b"ftyp"
    assert data.index(b"moov") < data.index(b"mdat")
    assert encode_mp4(frames, fps=20) == data
    write_mp4(tmp_path / "clip.mp4", frames, fps=20)
    assert (tmp_path / "clip.mp4").read_bytes() == data


def test_a_clip_stays_small():
    assert len(encode_mp4(moving_square(120, 240, 320), fps=20)) < 100_000


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        ([], 10, "no frames"),
        ([np.zeros((8, 8, 3), np.float32)], 10, r"frame 0 is float32 .*expected uint8 \(H, W, 3\)"),
        ([np.zeros((8, 8), np.uint8)], 10, r"frame 0 is uint8 \(8, 8\)"),
        ([np.zeros((8, 8, 4), np.uint8)], 10, r"\(8, 8, 4\)"),
        ([np.zeros((0, 8, 3), np.uint8)], 10, r"\(0, 8, 3\)"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 10, 3), np.uint8)], 10, "frame 1 has shape .* must agree"),
        ([np.zeros((8, 8, 3), np.uint8)], 0, "fps is 0"),
        ([np.zeros((8, 8, 3), np.uint8)], float("nan"), "fps is nan"),
    ],
)
def test_refusals(frames: list[np.ndarray], fps: float, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        encode_mp4(frames, fps)
    with pytest.raises(ValueError, match=message):
        write_mp4(tmp_path / "clip.mp4", frames, fps)
    assert not (tmp_path / "clip.mp4").exists()
