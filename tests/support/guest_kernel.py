"""What a guest boots: Debian's cloud kernel, and an initramfs with one program of ours."""

from __future__ import annotations

import io
import os
import platform
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.support.compiler import cache_folder, compile_c
from tests.support.need import missing, need_program, plain_environment

__all__ = ["Kernel", "kernel", "make_initramfs"]

_META_PACKAGE = "linux-image-cloud-amd64"
_INIT = Path(__file__).with_name("guest_init.c")
#: What must be loaded for a virtio disk on PCI; what these need in turn is found in them.
_WANTED = ("virtio_pci", "virtio_blk")
_KEPT = re.compile(r"\./(boot/vmlinuz-.*|lib/modules/.*/(virtio/virtio\w*|virtio_blk)\.ko)")


class Kernel(NamedTuple):
    """A kernel, and modules by name."""

    image: Path
    modules: dict[str, Path]


def kernel() -> Kernel:
    """The package's files, fetched by apt once and kept; nothing is installed.

    An installed kernel of the package is used where there is one.
    """
    if platform.machine() != "x86_64":
        missing("an x86-64 machine is needed for the guest's program")
    installed = _in(Path("/"))
    return installed or _fetched()


def _in(root: Path) -> Kernel | None:
    """The newest one below a folder."""
    for image in sorted(root.glob("boot/vmlinuz-*-cloud-amd64"), reverse=True):
        release = image.name.removeprefix("vmlinuz-")
        found = (root / "lib/modules" / release / "kernel/drivers").rglob("virtio*.ko")
        modules = {path.stem.replace("-", "_"): path for path in found}
        if modules.keys() >= set(_WANTED):
            return Kernel(image, modules)
    return None


def _fetched() -> Kernel:
    package = _package()
    target = cache_folder() / f"guest-{package}"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
            _system("apt-get", "download", "-q", package, folder=folder)
            (fetched,) = Path(folder).glob("*.deb")
            files = Path(folder) / "files"
            _unpack(fetched, files)
            try:
                files.rename(target)
            except OSError:
                if not target.exists():  # else another process was first
                    raise
    found = _in(target)
    if found is None:
        missing(f"{package} with a kernel and modules for virtio disks is needed")
    return found


def _package() -> str:
    told = _system("apt-cache", "depends", _META_PACKAGE)
    found = re.search(r"Depends: (linux-image-\S+-cloud-amd64)$", told, re.MULTILINE)
    if found is None:
        missing(f"apt must know {_META_PACKAGE}, of Debian: {told}")
    return found[1]


def _system(program: str, *arguments: str, folder: str | None = None) -> str:
    done = subprocess.run(
        [need_program(program, "apt"), *arguments],
        cwd=folder,
        env=plain_environment() | {"LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode != 0:
        missing(f"{program} {' '.join(arguments)} (apt-get update may help): {done.stderr}")
    return done.stdout


def _unpack(package: Path, target: Path) -> None:
    """The few files of the package that are used."""
    command = [need_program("dpkg-deb", "dpkg"), "--fsys-tarfile", os.fspath(package)]
    with subprocess.Popen(command, env=plain_environment(), stdout=subprocess.PIPE) as unpacking:
        assert unpacking.stdout is not None
        with tarfile.open(fileobj=unpacking.stdout, mode="r|") as members:
            for member in members:
                content = members.extractfile(member) if _KEPT.fullmatch(member.name) else None
                if content is not None:
                    path = target / member.name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with path.open("wb") as file:
                        shutil.copyfileobj(content, file)


def _in_order(modules: dict[str, Path], wanted: Iterable[str]) -> list[Path]:
    """Modules and what they need, each after what it needs."""
    ordered: dict[Path, None] = {}
    for name in wanted:
        needs = re.search(rb"\0depends=([^\0]*)\0", modules[name].read_bytes())
        assert needs is not None, modules[name]
        further = [each for each in needs[1].decode().split(",") if each]
        ordered.update(dict.fromkeys(_in_order(modules, further)))
        ordered[modules[name]] = None
    return list(ordered)


def make_initramfs(path: Path, modules: dict[str, Path]) -> None:
    """A cpio archive ("newc") of the program and of modules, named as it expects."""
    init = compile_c([_INIT], "guest-init", ["-O2", "-Wall", "-Wextra", "-Werror", "-static"])
    archive = io.BytesIO()
    _add(archive, "init", 0o100755, init.read_bytes())
    _add(archive, "modules", 0o040755)
    for number, module in enumerate(_in_order(modules, _WANTED)):
        _add(archive, f"modules/{number}", 0o100644, module.read_bytes())
    _add(archive, "TRAILER!!!", 0)
    path.write_bytes(archive.getvalue())


def _add(archive: io.BytesIO, name: str, mode: int, content: bytes = b"") -> None:
    text = name.encode() + b"\0"
    # Inode, mode, owner, group, links, time, size, device and special device, length of the name.
    inode = archive.tell() + 1
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(text), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    archive.writelines(part + bytes(-len(part) % 4) for part in (header + text, content))
