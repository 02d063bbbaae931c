"""An adapter whose package is missing says what to install; the others do not miss it."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

#: Adapter, module of its package that it imports first, package.
ADAPTERS = [
    ("amitools", "amitools.fs.blkdev.BlockDevice", "amitools"),
    ("dissect", "dissect.util.stream", "dissect.util"),
    ("qiling", "qiling", "qiling"),
    ("tsk", "pytsk3", "pytsk3"),
]


@pytest.mark.parametrize(("adapter", "module", "package"), ADAPTERS, ids=[a[0] for a in ADAPTERS])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    adapter: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"fdstash.adapters.{adapter}", raising=False)
    with pytest.raises(ImportError, match=f"pip install {package}") as caught:
        importlib.import_module(f"fdstash.adapters.{adapter}")
    assert caught.value.name == module
    assert isinstance(caught.value.__cause__, ImportError)


def test_the_package_imports_no_peer() -> None:
    hidden = f"import sys; sys.modules.update(dict.fromkeys({[a[1] for a in ADAPTERS]}))"
    code = f"{hidden}; import fdstash.adapters; fdstash.adapters.DiskFile"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
