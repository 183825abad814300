"""Files of a run: whole or absent, named without this machine, recognised when they change."""

import json
import os
from hashlib import sha256

import pandas as pd
import pytest
from conftest import held_elsewhere

from codeact_lib import artifacts
from codeact_lib.artifacts import (
    HashCache,
    RunPaths,
    StageManifest,
    atomic_write,
    make_folder,
    project_root,
    read_frame,
    read_json,
    sha256_file,
    sha256_json,
    write_frame,
    write_json,
)
from codeact_lib.errors import ArtifactError
from codeact_lib.measure import environment_facts


def test_a_lock_is_refused_while_another_process_has_it_and_dies_with_that_process(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "PATIENCE_SECONDS", 0.1)
    with held_elsewhere(tmp_path / ".lock"), pytest.raises(ArtifactError, match="^busy here$"):
        with artifacts.locked(tmp_path / ".lock", "busy here"):
            pass
    with artifacts.locked(tmp_path / ".lock", "busy"):  # its holder was killed
        pass


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_reader_sees_the_old_content_until_the_writer_is_done(tmp_path):
    path = tmp_path / "deep" / "folder" / "a.txt"
    with atomic_write(path) as file:
        file.write("first")
    with atomic_write(path) as file:
        file.write("second")
        file.flush()
        assert path.read_text() == "first"
    assert path.read_text() == "second"


def test_text_is_utf8_with_unix_line_ends_and_bytes_stay_bytes(tmp_path):
    with atomic_write(tmp_path / "t") as file:
        file.write("é\n")
    with atomic_write(tmp_path / "b", "wb") as file:
        file.write(b"\r\n")
    assert (tmp_path / "t").read_bytes() == b"\xc3\xa9\n"
    assert (tmp_path / "b").read_bytes() == b"\r\n"


def test_an_unwritable_folder_is_named_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for write in (lambda p: write_json(p / "a.json", {}), lambda p: make_folder(p)):
        with pytest.raises(ArtifactError, match=r"file/sub.*--artifacts-dir"):
            write(tmp_path / "file" / "sub")


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_frame_comes_back_as_it_was(tmp_path, suffix):
    frame = pd.DataFrame({"example_id": ["a", "b"], "ifd": [0.25, 1.5]})
    write_frame(tmp_path / f"x{suffix}", frame)
    pd.testing.assert_frame_equal(read_frame(tmp_path / f"x{suffix}"), frame)


def test_missing_and_damaged_files_are_named(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "bad.parquet").write_text("no parquet")
    for read, name in [
        (read_json, "absent.json"),
        (read_json, "bad.json"),
        (read_frame, "absent.parquet"),
        (read_frame, "bad.parquet"),
        (StageManifest.read, "absent.json"),
    ]:
        with pytest.raises(ArtifactError, match=name):
            read(tmp_path / name)
    with pytest.raises(ArtifactError, match=r"\.txt"):
        write_frame(tmp_path / "x.txt", pd.DataFrame())


def test_nan_is_refused_in_json(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_hashes_agree_with_hashlib_and_do_not_depend_on_key_order(tmp_path):
    (tmp_path / "f").write_bytes(b"abc" * 1_000_000)
    assert sha256_file(tmp_path / "f") == sha256(b"abc" * 1_000_000).hexdigest()
    assert sha256_json({"a": 1, "b": [2]}) == sha256_json({"b": [2], "a": 1}) != sha256_json({"a": 1, "b": [3]})


def test_the_hash_cache_notices_a_change_and_writes_only_when_it_learnt(tmp_path):
    file, cache = tmp_path / "f", tmp_path / ".hashes.json"
    file.write_text("one")
    hashes = HashCache(cache)
    assert hashes(file) == sha256_file(file)
    written = cache.stat().st_mtime_ns
    again = HashCache(cache)
    assert again(file) == sha256_file(file)
    assert cache.stat().st_mtime_ns == written
    file.write_text("other")
    assert again(file) == sha256_file(file)


def test_a_damaged_hash_cache_costs_time_only(tmp_path):
    (tmp_path / ".hashes.json").write_text("{")
    (tmp_path / "f").write_text("x")
    hashes = HashCache(tmp_path / ".hashes.json")
    assert hashes(tmp_path / "f") == sha256_file(tmp_path / "f")
    assert json.loads((tmp_path / ".hashes.json").read_text())


def test_a_folder_hash_sees_names_and_contents_but_not_hidden_files(tmp_path):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a").write_text("1")

    def digest():
        return HashCache(tmp_path / "c")(folder)

    before = digest()
    (folder / ".lock").write_text("x")
    assert digest() == before
    (folder / "sub" / "a").rename(folder / "sub" / "b")
    renamed = digest()
    (folder / "sub" / "b").write_text("2")
    assert len({before, renamed, digest()}) == 3


def test_manifest_paths_survive_a_move_to_another_folder(tmp_path):
    here = RunPaths("mini", tmp_path / "a" / "art", tmp_path / "a" / "res")
    there = RunPaths("mini", tmp_path / "b" / "art", tmp_path / "b" / "res")
    for path, moved in [
        (here.train_dir("run") / "model", there.train_dir("run") / "model"),
        (here.metrics("run"), there.metrics("run")),
    ]:
        assert not here.relative(path).startswith("/")
        assert there.absolute(here.relative(path)) == moved
    with pytest.raises(ArtifactError, match="outside"):
        here.relative(tmp_path / "elsewhere")


def test_the_project_is_found_from_any_folder_inside_it_and_from_outside(tmp_path, monkeypatch):
    (tmp_path / "notebooks" / "deep").mkdir(parents=True)
    (tmp_path / "codeact_lib").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks" / "deep")
    assert project_root() == tmp_path
    assert RunPaths("mini").artifacts == tmp_path / "artifacts" / "mini"
    assert RunPaths("mini", "x", "y").results == tmp_path / "y"
    monkeypatch.chdir("/")
    assert (project_root() / "codeact_lib" / "artifacts.py").exists()


def test_a_manifest_comes_back_as_it_was_and_an_odd_one_is_refused(tmp_path):
    manifest = StageManifest(
        "01_cluster", "k", {"n": 1}, {"a": "0"}, {"artifacts/x": "1"}, facts={"rows": 2}, seconds=1.5
    )
    manifest.write(tmp_path / "manifest.json")
    assert StageManifest.read(tmp_path / "manifest.json") == manifest
    write_json(tmp_path / "manifest.json", {"stage": "01_cluster"})
    with pytest.raises(ArtifactError, match="manifest.json"):
        StageManifest.read(tmp_path / "manifest.json")


def test_provenance_names_no_host_no_user_and_no_path():
    facts = environment_facts()
    assert {"python", "packages", "cpu", "cores", "gpu", "ram_gib", "platform"} == set(facts)
    text = json.dumps(facts)
    assert os.uname().nodename not in text
    assert str(os.path.expanduser("~")) not in text
    assert facts["packages"]["torch"]
