"""The selection bench: its made-up rows are what they claim to be, and a run on small sizes writes its table."""

import json

import numpy as np
import pytest

from bench.select import run, synthetic_rows


def test_the_rows_are_unit_vectors_around_centres_with_scores_of_every_kind():
    embeddings, frame = synthetic_rows(70_000, 16)
    assert embeddings.dtype == np.float32 and embeddings.shape == (70_000, 16)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    assert 0.05 < (frame["ifd"] >= 1).mean() < 0.2 and frame["ifd"].isna().equals(frame["status"] == "nan")
    assert frame["example_id"].is_unique
    again, _ = synthetic_rows(70_000, 16)
    assert np.array_equal(embeddings, again)


@pytest.mark.slow
def test_a_run_measures_each_size_and_writes_time_memory_and_cost_per_row(tmp_path):
    table = run(sizes=(300, 600), dimensions=8, repeats=1, folder=tmp_path, say=lambda line: None)
    assert table["rows"].tolist() == [300, 600] and (table["chosen"] > 50).all()
    assert np.allclose(table["microseconds_per_row"], table["seconds"] / table["rows"] * 1e6)
    written = json.loads((tmp_path / "select.json").read_text())
    assert [row["rows"] for row in written["rows"]] == [300, 600]
    assert all(row["process_memory_gb"] * 1e9 > row["peak_memory_bytes"] for row in written["rows"])
    assert "microseconds per row" in (tmp_path / "select.md").read_text()
