"""The keys file: what it takes, what it refuses, and how it changes."""

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lewm_serve.access.keys_file import (
    HASHER,
    KeysFileError,
    changed_keys,
    key_id,
    new_key,
    read_keys,
)
from tests.lewm_serve.support.keys import add_key


def test_the_file_holds_the_hash_and_not_the_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    key = add_key(file, "arm-1", "infer", "read", rate_per_s=20.0, max_concurrent=4)
    (entry,) = read_keys(file)
    assert (entry.name, entry.roles) == ("arm-1", ["infer", "read"])
    assert (entry.rate_per_s, entry.max_concurrent) == (20.0, 4)
    assert HASHER.verify(entry.hash, key)
    assert key_id(key) == entry.id
    secret = key.rpartition(entry.id)[2]
    assert len(secret) >= 43
    assert secret not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


def test_no_two_keys_are_alike() -> None:
    assert len({new_key("a", ["infer"])[0] for _ in range(20)}) == 20


def test_programs_that_change_the_file_at_once_lose_no_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: add_key(file, f"arm-{number}", "infer"), range(12)))
    assert {entry.name for entry in read_keys(file)} == {f"arm-{number}" for number in range(12)}
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


def test_an_error_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    add_key(file, "arm-1", "infer")
    before = file.read_bytes()

    def fail() -> None:
        with changed_keys(file) as entries:
            entries.clear()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert file.read_bytes() == before


def test_the_mode_of_the_file_stays(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    add_key(file, "arm-1", "infer")
    file.chmod(0o644)
    add_key(file, "arm-2", "infer")
    assert file.stat().st_mode & 0o777 == 0o644


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_owner_and_the_group_of_the_file_stay(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    add_key(file, "arm-1", "infer")
    os.chown(file, 10_001, 10_002)
    file.chmod(0o640)
    add_key(file, "arm-2", "infer")
    status = file.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (10_001, 10_002, 0o640)


def test_a_file_that_cannot_stay_readable_for_the_server_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    add_key(file, "arm-1", "infer")
    before = file.read_bytes()

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    with pytest.raises(KeysFileError, match="keys: this user cannot keep its owner and group"):
        add_key(file, "arm-2", "infer")
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"roles": ["drive"]}, "roles.0 is 'drive': Input should be 'infer', 'read' or 'admin'"),
        ({"roles": []}, r"roles is \[\]: List should have at least 1 item"),
        ({"name": "arm 1"}, "name is 'arm 1': String should match pattern"),
        ({"rate_per_s": 0}, "rate_per_s is 0: Input should be greater than 0"),
        ({"max_concurrent": 1.5}, "max_concurrent is 1.5: Input should be a valid integer"),
        ({"hash": "lewm_secret"}, "hash: expected an Argon2 hash"),
        ({"id": "xyz"}, "id: String should match pattern"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_line_is_named(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    add_key(file, "arm-1", "infer")
    line = json.loads(new_key("arm-2", ["infer"])[1].model_dump_json(exclude_defaults=True))
    file.write_text(f"# robots\n{file.read_text()}\n{json.dumps(line | change)}\n")
    with pytest.raises(KeysFileError, match=f"keys, line 4: {problem}"):
        read_keys(file)


def test_lines_that_are_no_json_or_there_twice(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    add_key(file, "arm-1", "infer")
    line = file.read_text()
    file.write_text(line + "arm-2 infer\n")
    with pytest.raises(KeysFileError, match="line 2: the line: Invalid JSON"):
        read_keys(file)
    file.write_text(2 * line)
    with pytest.raises(KeysFileError, match="line 2: the key arm-1 is there twice"):
        read_keys(file)
    file.write_bytes(line.encode() + b"\xff\n")
    with pytest.raises(KeysFileError, match="line 2: expected UTF-8"):
        read_keys(file)


def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    add_key(file, "arm-1", "infer")
    file.chmod(0o622)
    with pytest.raises(KeysFileError, match="others may write to it"):
        read_keys(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeysFileError, match="keys: no such file or directory"):
        read_keys(tmp_path / "keys")
