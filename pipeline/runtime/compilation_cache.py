"""What XLA has compiled for the CPU, kept in the cache so that the next process on the machine need not compile it.

TensorFlow writes an entry for each function and size of its arguments, and reads it where it meets the same program
again. It reads an entry as it is: a damaged one would be an error in a training step, and code for another processor
the end of the process. So each version of TensorFlow and each kind of processor has a folder of its own, and entries
are checked before TensorFlow is imported. The folder is private, as its code is executed.
"""

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from pipeline.runtime.cpu import instructions, processor_name
from pipeline.runtime.files import cache_folder, lock, private_folder, sha256_file, write_atomic

KIND = "compiled"  # the folder's name in the cache
FLAGS = "TF_XLA_FLAGS"
ENTRY, PART = ".pb", ".tmp"  # endings of an entry, and of one that is being written
DIGESTS = "digests.json"  # SHA-256 of the entries that have been checked
LOCK = ".lock"
# An entry has about 25 KB, and a network 12 to 25 of them.
MAX_BYTES = 64 << 20
# A full disk would be an error in the training step.
FREE_BYTES = 256 << 20
UNUSED_SECONDS = 30 * 24 * 3600.0  # after which the folder of another version or processor is removed
PART_SECONDS = 3600.0  # after which a part is what a killed process has left


def use_compilation_cache(environ: MutableMapping[str, str]) -> Path | None:
    """Let TensorFlow, which must not have been imported yet, keep what XLA compiles for the CPU; return the folder.

    Does nothing, and returns None, where the cache cannot be written or its disk is nearly full, or where the system
    does not say which instructions the processor has.

    Args:
        environ: The variables of the process that is to import TensorFlow.
    """
    key = _key()
    path = str(cache_folder(KIND))
    # within the quotes of a flag
    if key is None or not path.isprintable() or not {'"', "\\"}.isdisjoint(path):
        return None
    try:
        folder = private_folder(KIND, key)
        os.chmod(folder, 0o700)
        if psutil.disk_usage(str(folder)).free < FREE_BYTES:
            return None
        with lock(folder / LOCK):
            _check_entries(folder)
        limit_compilation_cache(folder)
        _remove_unused(folder)
    except OSError:
        return None
    environ[FLAGS] = (
        f'--tf_xla_persistent_cache_directory="{folder}" '
        # not measured on a GPU
        "--tf_xla_persistent_cache_device_types=CPU"
    )
    return folder


def limit_compilation_cache(folder: Path) -> None:
    """Remove the entries of a folder that have not been read for longest, until the others fit into MAX_BYTES."""
    entries = [(path, status) for path in folder.glob(f"*{ENTRY}") if (status := _status(path))]
    total = sum(status.st_size for _, status in entries)
    for path, status in sorted(entries, key=lambda entry: max(entry[1].st_atime, entry[1].st_mtime)):
        if total <= MAX_BYTES:
            return
        path.unlink(missing_ok=True)
        total -= status.st_size


def describe_compilation_cache() -> str:
    """Return in a few words what is kept, of all versions and processors."""
    entries = [status for path in cache_folder(KIND).glob(f"*/*{ENTRY}") if (status := _status(path))]
    return f"{len(entries)} compiled functions ({sum(status.st_size for status in entries) / 1e6:.1f} MB)"


def _key() -> str | None:
    """Return the name of the folder for this TensorFlow and this processor; None if either is unknown."""
    try:
        tensorflow = version("tensorflow")
    except PackageNotFoundError:
        return None
    if not instructions():
        return None
    parts = (tensorflow, platform.machine(), processor_name(), instructions(), sys.byteorder)
    return blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _check_entries(folder: Path) -> None:
    """Remove damaged entries, and what killed processes have left, and remember the digests of the others."""
    known, digests = _read_digests(folder), {}
    for path in folder.glob(f"*{PART}"):
        if (status := _status(path)) and time.time() - status.st_mtime > PART_SECONDS:
            path.unlink(missing_ok=True)
    for path in folder.glob(f"*{ENTRY}"):
        digest = ""
        with suppress(OSError):
            status = path.stat()
            if path.name in known or _is_complete(path):
                digest = sha256_file(path)
            # a check does not count as a use
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        if digest and known.get(path.name, digest) == digest:
            digests[path.name] = digest
        else:
            path.unlink(missing_ok=True)
    write_atomic(folder / DIGESTS, json.dumps(digests).encode())


def _read_digests(folder: Path) -> dict[str, str]:
    try:
        digests = json.loads((folder / DIGESTS).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return digests if isinstance(digests, dict) else {}


def _is_complete(path: Path) -> bool:
    """Return whether an entry that is new has all its parts, and was not written before the system last started.

    TensorFlow renames an entry when it is written but does not sync it, so that a power cut may have emptied it.
    """
    if path.stat().st_mtime < psutil.boot_time():
        return False
    try:
        fields = dict(_fields(path.read_bytes()))
    except (ValueError, IndexError):
        return False
    # key, program and machine code
    return all(fields.get(number) for number in (1, 2, 3))


def _fields(message: bytes) -> Iterator[tuple[int, int]]:
    """Yield number and length of each field of a message of Protocol Buffers, all of which must have a length.

    Raises:
        IndexError: It ends in the middle of a field.
        ValueError: It has other fields.
    """
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        length, position = _varint(message, position)
        position += length
        if tag & 7 != 2 or position > len(message):
            raise ValueError
        yield tag >> 3, length


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """Return the integer of variable length at a position, and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _remove_unused(folder: Path) -> None:
    """Remove the folders of other versions and processors that no process has used for long."""
    for other in folder.parent.iterdir():
        status = _status(other / DIGESTS)
        if other != folder and status and time.time() - status.st_mtime > UNUSED_SECONDS:
            shutil.rmtree(other, ignore_errors=True)


def _status(path: Path) -> os.stat_result | None:
    with suppress(OSError):
        return path.stat()
    return None
