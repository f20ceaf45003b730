"""Frames of videos by their time."""

from __future__ import annotations

import numpy as np
import pytest

from flowhand.demos.frames import VideoFile
from tests.demos.recorded import decoded, frames_of, write_video


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> VideoFile:
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    write_video(path, frames_of(1, 90))
    return VideoFile(path)


@pytest.mark.parametrize("b_frames", [0, 3])
@pytest.mark.parametrize("codec", ["libx264", "libsvtav1"])
def test_any_frames_in_any_order_equal_a_full_decode(tmp_path, codec, b_frames):
    frames = np.repeat(np.repeat(frames_of(2, 70), 2, 1), 2, 2)
    write_video(tmp_path / "a.mp4", frames, codec=codec, b_frames=b_frames)
    video, whole = VideoFile(tmp_path / "a.mp4"), decoded(tmp_path / "a.mp4")
    assert len(video) == len(whole) == 70
    random = np.random.default_rng(0)
    for indices in ([0], [69], [69, 0], [5, 5, 4], *(random.integers(0, 70, n) for n in (1, 2, 8, 30))):
        np.testing.assert_array_equal(video.read(indices), whole[indices])


def test_a_frame_is_found_by_its_time_or_refused(video):
    assert video.indices_at(np.array([0.0, 0.1, 8.9]), 0.1).tolist() == [0, 1, 89]
    assert video.indices_at(np.array([0.12, 0.08]), 0.1).tolist() == [1, 1]
    for time in (0.15, 9.0, -0.1, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"a.mp4: no frame at"):
            video.indices_at(np.array([0.0, time]), 0.1)


@pytest.mark.parametrize(
    "content", [b"", b"nothing", b"#EXTM3U\nfile:///etc/passwd\n", b"\x00\x00\x00\x18ftypmp42" + bytes(99)]
)
def test_what_is_no_video_is_one_line(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.mp4: ") as caught:
        VideoFile(tmp_path / "a.mp4")
    assert "\n" not in str(caught.value)
