"""Parquet files: their footers against pyarrow's reading, and every damage to one."""

import os

import numpy as np
import pytest

from flowhand.demos.lerobot.footer import Chunk, chunks
from flowhand.demos.lerobot.parquet import ParquetFile

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def table(rows: int, seed: int = 0):
    random = np.random.default_rng(seed)
    return pa.table(
        {
            "observation.state": pa.array(list(random.standard_normal((rows, 3))), pa.list_(pa.float32())),
            "task": [f"text {i % 3}" for i in range(rows)],
            "pictures": [{"bytes": bytes(i % 7), "path": None} for i in range(rows)],
            "done": random.random(rows) < 0.5,
            "at": random.random(rows),
        }
    )


def footer_of(path) -> bytes:
    content = path.read_bytes()
    return content[-8 - int.from_bytes(content[-8:-4], "little") : -8]


@pytest.mark.parametrize("rows", [1, 40, 400])
@pytest.mark.parametrize("options", [{}, {"write_statistics": False, "compression": "zstd"}, {"version": "1.0"}])
def test_a_footer_says_what_pyarrow_reads(tmp_path, rows, options):
    path = tmp_path / "file.parquet"
    with pq.ParquetWriter(path, table(1).schema, **options) as writer:
        for start in range(0, rows, 100):
            writer.write_table(table(min(100, rows - start), start))
    described = pq.ParquetFile(path).metadata
    expected = []
    for group in range(described.num_row_groups):
        columns = [described.row_group(group).column(i) for i in range(described.num_columns)]
        names = [described.schema.column(i).path for i in range(described.num_columns)]
        assert [c.path_in_schema for c in columns] == names
        outermost = ["observation.state", "task", "pictures", "pictures", "done", "at"]
        sizes = [(c.num_values, c.total_uncompressed_size) for c in columns]
        expected.append([Chunk(name, *size) for name, size in zip(outermost, sizes, strict=True)])
    assert chunks(footer_of(path)) == expected


def test_no_byte_of_a_footer_ends_the_process(tmp_path):
    """Among them the size statistics, at which pyarrow's own objects call for the end of the process."""
    path, damaged = tmp_path / "file.parquet", tmp_path / "damaged.parquet"
    pq.write_table(table(20).select(["observation.state"]), path)
    content = path.read_bytes()
    start = len(content) - 8 - len(footer_of(path))
    outcomes = tmp_path / "outcomes"
    child = os.fork()
    if not child:
        refused = 0
        for place in range(start, len(content) - 8):
            damaged.write_bytes(content[:place] + bytes([content[place] ^ 2]) + content[place + 1 :])
            try:
                file = ParquetFile(damaged)
                for name in file.names:
                    file.table([name])
            except ValueError:
                refused += 1
            outcomes.write_text(f"{place - start + 1} {refused}")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, f"ended after {outcomes.read_text()} bytes and refusals"
    tried, refused = map(int, outcomes.read_text().split())
    assert tried == len(content) - 8 - start
    assert 0.05 * tried < refused < tried


@pytest.mark.parametrize(
    ("footer", "line"),
    [
        (b"", "ends early"),
        (b"\x49\xfc\xff\xff\xff\x0f", "ends early"),  # a list of 4 billion groups
        (b"\x1c" * 100, "too deep"),
        (b"\x1f", "a value of type 15"),
        (b"\x49\x15\x00", "a list of type 5, expected 12"),
        (b"\x16" + b"\xff" * 12, "more than 64 bits"),
    ],
)
def test_a_footer_that_is_none_is_told_in_one_line(footer, line):
    with pytest.raises(ValueError, match=line):
        chunks(footer)


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    path = tmp_path / "file.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array([1.0]), pa.array([2.0])], names=["a", "a"]), path)
    with pytest.raises(ValueError, match="it has several columns 'a'"):
        ParquetFile(path)
