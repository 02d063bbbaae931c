"""Real clients on our export: QEMU's tools, libnbd's, fio; and a proxy for what we leave to one."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import fdstash
from fdstash import Image
from fdstash.export import NbdServer
from tests.support.nbd_peers import allocation, fio, libnbd, run, their_server, uri
from tests.support.need import need_program, plain_environment
from tests.support.qemu_tools import qemu_img, qemu_io

SIZE = 8 << 20

KINDS = ("raw", "twoGbMaxExtentFlat", "monolithicSparse", "streamOptimized", "chain")


@pytest.fixture
def content() -> bytes:
    """Data, and zeros that no file has to hold."""
    chance = random.Random(8)
    data = bytearray(SIZE)
    for start, length in ((0, 4096), (65536 * 3, 300000), (5 << 20, 65536), (SIZE - 512, 512)):
        data[start : start + length] = chance.randbytes(length)
    return bytes(data)


@pytest.fixture
def disk(tmp_path: Path, content: bytes) -> Path:
    """A raw image with holes where there are zeros."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as made:
        made.truncate(SIZE)
        for at in range(0, SIZE, 4096):
            if any(content[at : at + 4096]):
                made.seek(at)
                made.write(content[at : at + 4096])
    return path


def made_of(disk: Path, kind: str) -> tuple[Path, str]:
    """The image as another kind, by qemu-img, and its format."""
    if kind == "raw":
        return disk, "raw"
    path = disk.parent / f"{kind}.vmdk"
    if kind == "chain":
        base, _ = made_of(disk, "monolithicSparse")
        assert qemu_img("create", "-q", "-f", "vmdk", "-b", base, "-F", "vmdk", path).status == 0
        ran = qemu_io(path, "write -P 9 1M 64k", format="vmdk")
        assert ran.status == 0, ran
        return path, "vmdk"
    ran = qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={kind}", disk, path)
    assert ran.status == 0, ran
    return path, "vmdk"


@pytest.fixture
def where(tmp_path: Path) -> str:
    return str(tmp_path / "nbd.sock")


@pytest.fixture
def server(where: str) -> Iterator[NbdServer]:
    with NbdServer() as made:
        made.listen_unix(where)
        yield made


@pytest.fixture
def image(disk: Path, server: NbdServer) -> Iterator[Image]:
    """The raw one, exported for writing."""
    with fdstash.open(disk, "r+", format="raw") as opened:
        server.add("e", opened, writable=True, description="a disk")
        yield opened
        server.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_allocation_told_is_that_of_qemu(
    disk: Path, server: NbdServer, where: str, tmp_path: Path, kind: str
) -> None:
    path, format = made_of(disk, kind)
    with their_server(path, format, tmp_path / "theirs.sock"):
        theirs = allocation(tmp_path / "theirs.sock")
    with fdstash.open(path, format=format, lock=False) as opened:
        server.add("e", opened)
        ours = allocation(where)
        server.close()
    if kind == "twoGbMaxExtentFlat":
        # Holes of a flat extent are holes to us as those of a raw image are; to QEMU zeros alone.
        ours = [(length, bits & 2) for length, bits in ours]
    assert ours == theirs


@pytest.mark.parametrize("kind", KINDS)
def test_qemu_img_and_nbdcopy_find_the_same_content(
    disk: Path, server: NbdServer, where: str, kind: str, content: bytes
) -> None:
    folder = disk.parent
    path, format = made_of(disk, kind)
    with fdstash.open(path, format=format) as opened:
        server.add("e", opened, name="disk")
        wanted = opened.pread(SIZE, 0)
        ran = qemu_img("convert", "-f", "raw", "-O", "raw", uri(where, "disk"), folder / "a")
        assert ran.status == 0, ran
        run("nbdcopy", "libnbd-bin", uri(where, "disk"), folder / "b")
        assert (folder / "a").read_bytes() == wanted
        assert (folder / "b").read_bytes() == wanted
        assert kind == "chain" or wanted == content
        server.close()


def test_qemu_img_and_nbdcopy_write(image: Image, where: str, tmp_path: Path) -> None:
    data = random.Random(9).randbytes(1 << 20) + bytes(SIZE - (1 << 20))
    (tmp_path / "new").write_bytes(data)
    ran = qemu_img("convert", "-n", "-f", "raw", "-O", "raw", tmp_path / "new", uri(where))
    assert ran.status == 0, ran
    assert image.pread(SIZE, 0) == data
    ran = qemu_img("compare", "-f", "raw", "-F", "raw", tmp_path / "new", uri(where))
    assert ran.status == 0, ran
    (tmp_path / "new").write_bytes(data[::-1])
    run("nbdcopy", "libnbd-bin", "--flush", tmp_path / "new", uri(where))
    assert image.pread(SIZE, 0) == data[::-1]


@pytest.mark.parametrize("subformat", ["monolithicSparse", "twoGbMaxExtentSparse"])
def test_a_sparse_vmdk_is_filled_over_nbd_and_sound(
    disk: Path, server: NbdServer, where: str, subformat: str
) -> None:
    path = disk.parent / "made.vmdk"
    fdstash.create(path, "vmdk", SIZE, subformat=subformat)
    with fdstash.open(path, "r+") as opened:
        server.add("e", opened, writable=True)
        ran = qemu_img("convert", "-n", "-W", "-f", "raw", "-O", "raw", disk, uri(where))
        assert ran.status == 0, ran
        server.close()
    assert qemu_img("check", "-f", "vmdk", path).status == 0
    assert qemu_img("compare", "-f", "raw", "-F", "vmdk", disk, path).status == 0
    assert sum(each.stat().st_size for each in disk.parent.glob("made*")) < SIZE // 2


def test_qemu_io_reads_writes_zeroes_and_discards(image: Image, where: str) -> None:
    ran = qemu_io(
        uri(where),  # type: ignore[arg-type]
        "write -P 1 0 1M",
        "write -P 2 1000 3001",
        "read -P 2 1000 3001",
        "write -f -P 3 64k 64k",
        "write -z -u 128k 64k",
        "write -z 200k 4k",
        "discard 256k 64k",
        "flush",
        "read -P 0 128k 64k",
        "read -P 0 200k 4k",
        "read -P 1 512k 64k",
        "aio_write -P 4 1M 64k",
        "aio_read -P 1 768k 64k",
        "aio_flush",
        "read -P 4 1M 64k",
        f"read {SIZE - 512} 512",
    )
    assert ran.status == 0, ran
    assert image.pread(3001, 1000) == b"\2" * 3001
    assert image.pread(65536, 1 << 20) == b"\4" * 65536


def test_nbdinfo_sees_what_is_offered(image: Image, where: str) -> None:
    text = run("nbdinfo", "libnbd-bin", "--json", "--list", uri(where))
    (found,) = json.loads(text)["exports"]
    assert found["export-size"] == SIZE
    assert found["description"] == "a disk"
    assert found["contexts"] == ["base:allocation"]
    for each in ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"):
        assert found[f"can_{each}"], each
    assert not found["is_read_only"]
    assert (found["block_size_minimum"], found["block_size_maximum"]) == (1, 32 << 20)


def test_many_connections_copy_at_once(image: Image, where: str, tmp_path: Path) -> None:
    data = random.Random(10).randbytes(SIZE)
    (tmp_path / "new").write_bytes(data)
    run("nbdcopy", "libnbd-bin", "--connections=4", "--requests=32", tmp_path / "new", uri(where))
    assert image.pread(SIZE, 0) == data


def test_fio_verifies_what_it_writes(image: Image, where: str) -> None:
    job = fio(
        where,
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=16",
        f"--size={SIZE}",
        "--verify=crc32c",
        "--do_verify=1",
        "--trim_percentage=5",
    )
    assert job["write"]["total_ios"] > 0
    assert job["read"]["total_ios"] > 0


_LIBNBD = """
import nbd, sys
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(sys.argv[1])
assert h.can_meta_context("base:allocation") and h.can_multi_conn()
h.pwrite(b"hello" * 1000, 12345, nbd.CMD_FLAG_FUA)
assert h.pread(5000, 12345) == b"hello" * 1000
seen = []
def chunk(data, offset, status, error):
    seen.append((bytes(data), offset, status))
h.pread_structured(8192, 0, chunk, nbd.CMD_FLAG_DF)
assert len(seen) == 1
h.zero(65536, 65536, nbd.CMD_FLAG_NO_HOLE)
h.trim(65536, 131072, nbd.CMD_FLAG_FUA)
h.cache(65536, 0)
h.flush()
runs = []
def extent(context, offset, entries, error):
    runs.extend(entries)
h.block_status(65536, 0, extent, nbd.CMD_FLAG_REQ_ONE)
assert len(runs) == 2 and 0 < runs[0] <= 65536, runs
h.set_strict_mode(0)
for call in (lambda: h.pread(512, h.get_size()), lambda: h.pwrite(b"x", h.get_size())):
    try:
        call()
    except nbd.Error as error:
        print(error.errno)
h.shutdown()
"""


def test_libnbds_binding_uses_every_command(image: Image, where: str) -> None:
    assert libnbd(_LIBNBD, uri(where)).split() == ["EINVAL", "ENOSPC"]
    assert image.pread(5000, 12345) == b"hello" * 1000
    assert image.pread(65536, 65536) == bytes(65536)


def test_over_tcp(image: Image, server: NbdServer, tmp_path: Path) -> None:
    host, port = server.listen_tcp("127.0.0.1", 0)
    run("nbdcopy", "libnbd-bin", f"nbd://{host}:{port}", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == image.pread(SIZE, 0)


def test_nbdkit_carries_it_beyond_the_machine(image: Image, where: str, tmp_path: Path) -> None:
    """As docs/nbd.md says, with TLS by pre-shared keys; the way into it is a Unix socket here."""
    keys = tmp_path / "keys.psk"
    keys.write_text("alice:" + "0123456789abcdef" * 4 + "\n")
    keys.chmod(0o600)
    front = tmp_path / "front.sock"
    command = [need_program("nbdkit", "nbdkit"), "-f", "-U", str(front), "--tls=require"]
    command += [f"--tls-psk={keys}", "nbd", f"socket={where}", "shared=true"]
    proxy = subprocess.Popen(command, env=plain_environment())
    try:
        while not front.exists():
            assert proxy.poll() is None
        through = f"nbds+unix://alice@/?socket={front}&tls-psk-file={keys}"
        run("nbdcopy", "libnbd-bin", through, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == image.pread(SIZE, 0)
        (tmp_path / "new").write_bytes(b"through TLS " * (SIZE // 12) + bytes(SIZE % 12))
        run("nbdcopy", "libnbd-bin", tmp_path / "new", through)
        assert image.pread(12, 0) == b"through TLS "
    finally:
        proxy.terminate()
        proxy.wait(20)
