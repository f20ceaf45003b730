"""Frames of videos by their time, and the cache that keeps them."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest

from flowhand.demos.frames import FrameCache, VideoFile
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


def kept(cache: FrameCache, video: VideoFile) -> np.ndarray:
    frames = cache.frames(video)
    assert frames is not None
    return frames


def test_the_cache_decodes_once(tmp_path, video, monkeypatch):
    cache = FrameCache(tmp_path / "cache", 10**8)
    frames = cache.frames(video)
    assert isinstance(frames, np.memmap)
    np.testing.assert_array_equal(frames, decoded(video.path))
    monkeypatch.setattr(VideoFile, "_decoded", lambda *_: pytest.fail("it was decoded again"))
    np.testing.assert_array_equal(kept(FrameCache(tmp_path / "cache", 0), video), frames)


def test_the_cache_keeps_its_bound_with_one_line(tmp_path, video, caplog):
    cache = FrameCache(tmp_path / "cache", 90 * 48 * 64 * 3 - 1)
    assert cache.frames(video) is None
    assert cache.frames(video) is None
    assert len(caplog.records) == 1
    assert "decoded on the fly" in caplog.text
    assert not list((tmp_path / "cache").glob("*.npy"))


def test_the_cache_keeps_other_sizes_apart(tmp_path, video):
    small = FrameCache(tmp_path / "cache", 10**8, (12, 16), lambda frame, size: frame[::4, ::4])
    np.testing.assert_array_equal(small.frames(video), decoded(video.path)[:, ::4, ::4])
    assert kept(FrameCache(tmp_path / "cache", 10**8), video).shape == (90, 48, 64, 3)
    with pytest.raises(ValueError, match="expected both, or neither"):
        FrameCache(tmp_path, 0, (3, 4))


def test_a_killed_writer_leaves_nothing_that_counts(tmp_path, video):
    cache = FrameCache(tmp_path / "cache", 90 * 48 * 64 * 3 + 2**11)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / f".{cache._key(video)}.tmp").write_bytes(bytes(10**6))
    assert cache.frames(video) is not None


def test_damage_in_the_video_keeps_nothing(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, frames_of(0, 60))
    content = bytearray(path.read_bytes())
    middle = content.index(b"mdat") + 400
    content[middle : middle + 2000] = bytes(2000)
    path.write_bytes(content)
    cache = FrameCache(tmp_path / "cache", 10**8)
    with pytest.raises(ValueError, match=r"a.mp4: "):
        cache.frames(VideoFile(path))
    assert not [file for file in (tmp_path / "cache").iterdir() if file.suffix != ".lock"]


def _fill(folder, path, queue) -> None:
    queue.put(kept(FrameCache(folder, 10**8), VideoFile(path)).sum())


def test_processes_share_a_cache(tmp_path, video):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_fill, args=(tmp_path / "cache", video.path, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    sums = {queue.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    assert sums == {decoded(video.path).sum()}
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1


@pytest.mark.parametrize(
    "content", [b"", b"nothing", b"#EXTM3U\nfile:///etc/passwd\n", b"\x00\x00\x00\x18ftypmp42" + bytes(99)]
)
def test_what_is_no_video_is_one_line(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.mp4: ") as caught:
        VideoFile(tmp_path / "a.mp4")
    assert "\n" not in str(caught.value)
