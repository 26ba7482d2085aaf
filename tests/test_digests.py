"""Facts about the digests of files."""

import hashlib

from pipeline.digests import changed, digests


def test_every_file_below_a_folder_has_the_digest_that_sha256sum_gives(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "deep" / "b").write_bytes(b"two" * 1_000_000)
    assert digests(tmp_path) == {
        "a": hashlib.sha256(b"one").hexdigest(),
        "deep/b": hashlib.sha256(b"two" * 1_000_000).hexdigest(),
    }


def test_what_is_gone_or_another_is_named_and_what_is_new_is_not(tmp_path):
    for name in "abc":
        (tmp_path / name).write_text(name)
    kept = digests(tmp_path)
    assert changed(tmp_path, kept) == []
    (tmp_path / "a").unlink()
    (tmp_path / "b").write_text("B")
    (tmp_path / "d").write_text("d")
    assert changed(tmp_path, kept) == ["a", "b"]
