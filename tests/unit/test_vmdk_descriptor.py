from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fdstash.errors import FormatError
from fdstash.formats.vmdk import descriptor as d
from fdstash.formats.vmdk.descriptor import NO_PARENT, CidPlace, Descriptor, ExtentLine

# As qemu-img 7.2 writes it.
QEMU = """\
# Disk DescriptorFile
version=1
CID=74c8c617
parentCID=ffffffff
createType="twoGbMaxExtentFlat"

# Extent description
RW 4194304 FLAT "t-f001.vmdk" 0
RW 2097152 FLAT "t-f002.vmdk" 0

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "4"
ddb.geometry.cylinders = "10402"
ddb.geometry.heads = "16"
ddb.geometry.sectors = "63"
ddb.adapterType = "ide"
ddb.toolsVersion = "2147483647"
"""

HEAD = 'version=1\nCID=1\nparentCID=ffffffff\ncreateType="custom"\n'


def parse(text: str | bytes) -> Descriptor:
    data = text.encode() if isinstance(text, str) else text
    return d.parse(data, "disk.vmdk")


def extent(line: str | bytes) -> ExtentLine:
    data = line.encode() if isinstance(line, str) else line
    (found,) = parse(HEAD.encode() + data).extents
    return found


def refused(text: str | bytes) -> FormatError:
    with pytest.raises(FormatError) as caught:
        parse(text)
    assert caught.value.file == "disk.vmdk"
    return caught.value


def test_what_qemu_writes_is_read() -> None:
    found = parse(QEMU)
    assert found.create_type == "twoGbMaxExtentFlat"
    assert found.cid == 0x74C8C617
    assert found.parent_cid == NO_PARENT
    assert found.version == "1"
    assert found.encoding is None
    assert found.extents == (
        ExtentLine("RW", 4194304, "FLAT", "t-f001.vmdk", 0),
        ExtentLine("RW", 2097152, "FLAT", "t-f002.vmdk", 0),
    )
    assert found.database[0] == ("ddb.virtualHWVersion", "4")
    assert len(found.database) == 6
    assert found.cid_place == CidPlace(QEMU.index("74c8"), b"74c8c617")
    assert found.lines == tuple(QEMU.index(f"RW {n}") for n in ("4194304", "2097152"))


def test_what_we_write_is_what_qemu_writes() -> None:
    assert d.build(parse(QEMU)).decode() == QEMU


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("=", " = "),
        lambda text: text.replace("\n", "\n\n \t\n# a comment\n"),
        lambda text: text.replace("RW ", "rw\t ").replace("FLAT", "flat"),
        lambda text: text.replace("createType", "CREATETYPE").replace("CID=", "cid="),
        lambda text: text + "\0" * 700 + "not read",
        lambda text: text.rstrip("\n"),
        lambda text: text.replace("=7", '="7').replace("c617", 'c617"'),
        lambda text: text.replace("parentCID=ffffffff\n", ""),
    ],
)
def test_the_same_said_otherwise_means_the_same(rewrite) -> None:  # type: ignore[no-untyped-def]
    found = parse(rewrite(QEMU))
    expected = parse(QEMU)
    assert found.create_type.lower() == expected.create_type.lower()
    assert found.extents == expected.extents
    assert (found.cid, found.parent_cid) == (expected.cid, expected.parent_cid)
    assert found.database == expected.database


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('RW 5 FLAT "a" 7', ExtentLine("RW", 5, "FLAT", "a", 7)),
        ('RW 5 FLAT "a"', ExtentLine("RW", 5, "FLAT", "a")),
        ('RW 5 VMFS "a"', ExtentLine("RW", 5, "VMFS", "a")),
        ("RW 5 ZERO", ExtentLine("RW", 5, "ZERO")),
        ('RW 5 ZERO "a" 0', ExtentLine("RW", 5, "ZERO", "a", 0)),
        ("RW 5 ZERO 0 x", ExtentLine("RW", 5, "ZERO", None, None, "0 x")),
        ('RDONLY 5 FLAT "a" 0', ExtentLine("RDONLY", 5, "FLAT", "a", 0)),
        ('NOACCESS 5 FLAT "a" 0', ExtentLine("NOACCESS", 5, "FLAT", "a", 0)),
        ('RW 5 SPARSE "a"', ExtentLine("RW", 5, "SPARSE", "a")),
        (
            'RW 5 FLAT "a" 0 partitionUUID /dev/sda',
            ExtentLine("RW", 5, "FLAT", "a", 0, "partitionUUID /dev/sda"),
        ),
        ('RW 5 VMFS "a" one two', ExtentLine("RW", 5, "VMFS", "a", None, "one two")),
        ('RW 5 FLAT "with space.vmdk" 0', ExtentLine("RW", 5, "FLAT", "with space.vmdk", 0)),
        ('RW 5 FLAT "with "quote".vmdk" 0', ExtentLine("RW", 5, "FLAT", 'with "quote".vmdk', 0)),
        ('RW 5 FLAT ""quoted"" 0', ExtentLine("RW", 5, "FLAT", '"quoted"', 0)),
        ('RW 5 FLAT "a b=c #d" 0', ExtentLine("RW", 5, "FLAT", "a b=c #d", 0)),
        ('RW 5 FLAT "sub/folder/é.vmdk" 0', ExtentLine("RW", 5, "FLAT", "sub/folder/é.vmdk", 0)),
        (b'RW 5 FLAT "\xff.vmdk" 0', ExtentLine("RW", 5, "FLAT", "\udcff.vmdk", 0)),
        ('RW 5 FLAT ""', ExtentLine("RW", 5, "FLAT", "")),
        ("RW 5 FLAT a 0", ExtentLine("RW", 5, "FLAT", None, None, "a 0")),
        ('RW 5 FLAT\t"a"\t3\tx', ExtentLine("RW", 5, "FLAT", "a", 3, "x")),
    ],
)
def test_an_extent_line_is_read(line: str | bytes, expected: ExtentLine) -> None:
    assert extent(line) == expected


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ('RW x FLAT "a" 0', "sectors"),
        ('RW -5 FLAT "a" 0', "sectors"),
        ('RW 0x5 FLAT "a" 0', "sectors"),
        ('RW 99999999999999999999 FLAT "a" 0', "sectors"),
        (f'RW {"9" * 5000} FLAT "a" 0', "sectors"),
        ('RW ٥ FLAT "a" 0', "sectors"),
        ('RW 5 FLAT "a" -1', "offset"),
        ('RW 5 FLAT "a" 1x', "offset"),
        ('RW 5 FLAT "a" 99999999999999999999', "offset"),
        ('RW 5 FLAT "a', "file name"),
        ('RW 5 FLAT "a"0', "file name"),
        (f'RW 5 FLAT "{"a" * 4096}" 0', "file name"),
        ("RW 5", "line"),
        ("RW", "line"),
        ('WR 5 FLAT "a" 0', "line"),
        ("an odd line", "line"),
        ("=5", "line"),
    ],
)
def test_a_wrong_line_is_refused_with_place_and_field(line: str, field: str) -> None:
    error = refused(HEAD + line)
    assert (error.offset, error.field) == (len(HEAD), field)
    assert len(str(error)) < 300


def test_a_descriptor_without_create_type_is_refused() -> None:
    assert refused("CID=1\n").field == "createType"


@pytest.mark.parametrize("value", ["xyz", "", "123456789", "-1"])
def test_a_parent_that_is_no_number_is_refused(value: str) -> None:
    assert refused(f"parentCID={value}\n{HEAD}").field == "parentCID"


@pytest.mark.parametrize("line", ['createType="vmfs"', "parentCID=1", "version=2"])
def test_a_key_with_two_values_is_refused(line: str) -> None:
    error = refused(HEAD + line)
    assert error.offset == len(HEAD)
    assert "twice" in error.message
    parse(HEAD + HEAD)


@pytest.mark.parametrize("value", ["", "xyz", "123456789", "0x12", "12 34"])
def test_a_cid_that_is_no_number_does_no_harm(value: str) -> None:
    found = parse(HEAD.replace("CID=1\n", f"CID={value}\n", 1))
    assert (found.cid, found.cid_place) == (None, None)


def test_the_parent_cid_is_not_taken_for_the_cid() -> None:
    found = parse('parentCID=ffffffff\nCID=12\ncreateType="vmfs"\n')
    assert found.cid == 0x12
    assert found.cid_place == CidPlace(23, b"12")


@pytest.mark.parametrize(
    ("encoding", "codec", "name"),
    [
        ("UTF-8", "utf-8", "Müller 圖像"),
        ("windows-1252", "cp1252", "Müller – disk"),
        ("Windows-1251", "cp1251", "диск"),
        ("ISO-8859-1", "latin-1", "Müller"),
        ("Shift_JIS", "cp932", "表ソ"),  # their second byte is a backslash
        ("GBK", "gbk", "磁盘"),
        ("GB18030", "gb18030", "磁盘"),
        ("Big5", "cp950", "功蓋"),
        ("US-ASCII", "ascii", "disk"),
    ],
)
def test_names_are_read_in_the_encoding_that_the_descriptor_names(
    encoding: str, codec: str, name: str
) -> None:
    text = f'encoding="{encoding}"\n{HEAD}RW 5 FLAT "{name}" 0\n'
    found = parse(text.encode(codec))
    assert found.extents[0].name == name
    assert found.encoding == encoding
    assert parse(d.build(found)) == found


def test_an_encoding_counts_wherever_its_line_is() -> None:
    text = f'{HEAD}RW 5 FLAT "é" 0\nENCODING = windows-1252\n'
    assert parse(text.encode("cp1252")).extents[0].name == "é"


@pytest.mark.parametrize("name", ["klingon", "unicode_escape", "zip", "idna", "utf-7", "..", ""])
def test_an_unknown_encoding_is_refused_where_it_matters(name: str) -> None:
    text = f'encoding="{name}"\n{HEAD}RW 5 FLAT "%s" 0\n'
    assert parse(text % "plain").extents[0].name == "plain"
    error = refused(text % "é")
    assert (error.field, error.offset) == ("encoding", 0)


@pytest.mark.parametrize("encoding", ["windows-1252", "EUC-JP", "UTF-8"])
def test_bytes_that_are_not_in_the_encoding_are_kept(encoding: str) -> None:
    text = f'encoding="{encoding}"\n{HEAD}RW 5 FLAT "'.encode()
    found = parse(text + b'\x81x" 0')
    assert found.extents[0].name == "\udc81x"
    assert parse(d.build(found)) == found


def test_other_entries_are_kept_in_order() -> None:
    text = HEAD + 'isNativeSnapshot="no"\nchangeTrackPath = "d-ctk.vmdk"\nddb.b="2"\nddb.a = 1\n'
    found = parse(text)
    assert found.settings == (("isNativeSnapshot", "no"), ("changeTrackPath", "d-ctk.vmdk"))
    assert found.database == (("ddb.b", "2"), ("ddb.a", "1"))
    assert parse(d.build(found)) == found


@pytest.mark.parametrize(
    "change",
    [
        {"create_type": 'a"\nb'},
        {"extents": (ExtentLine("RW", 1, "FLAT", "line\nbreak", 0),)},
        {"extents": (ExtentLine("RW", 1, "FLAT", 'a" 5 b', 0),)},
        {"extents": (ExtentLine("RW", 1, "FLAT", "nul\0", 0),)},
        {"extents": (ExtentLine("RW", 1, "FLAT", "é", 0),), "encoding": "US-ASCII"},
        {"settings": (("key with space", "v"),)},
        {"settings": (("CID", "12"),)},
        {"database": (("ddb.a", "b\nRW 1 ZERO"),)},
        {"extents": (ExtentLine("RW", 1, "ZERO"),) * (d.MAX_EXTENTS + 1)},
    ],
)
def test_what_would_be_read_otherwise_is_not_written(change: dict[str, object]) -> None:
    good = parse(HEAD)
    with pytest.raises(FormatError):
        d.build(replace(good, **change))  # type: ignore[arg-type]


def test_limits_are_stated_and_held() -> None:
    lines = "RW 1 ZERO\n"
    assert len(parse(HEAD + lines * d.MAX_EXTENTS).extents) == d.MAX_EXTENTS
    error = refused(HEAD + lines * (d.MAX_EXTENTS + 1))
    assert error.field == "extents"
    assert error.offset == len(HEAD) + len(lines) * d.MAX_EXTENTS
    assert refused(HEAD + "a=\n" * (d.MAX_ENTRIES + 1)).field == "line"
    assert refused(b"#" * d.MAX_BYTES).field == "descriptor"


# Names that a file can have, in any script; a quote followed by a number would
# end the name, and the writer refuses such names.
NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters='\n\r\0"'), min_size=1, max_size=40
) | st.binary(min_size=1, max_size=20).map(
    lambda b: b.translate(None, b'\n\r\0"').decode("utf-8", "surrogateescape")
)
SECTORS = st.integers(0, 2**62)
VALUES = st.text(st.characters(codec="utf-8", exclude_characters='\n\r\0"'), max_size=20)
KEYS = st.from_regex(r"[A-Za-z][A-Za-z0-9._]{0,10}", fullmatch=True)
EXTENTS = st.one_of(
    st.builds(
        ExtentLine,
        st.sampled_from(["RW", "RDONLY", "NOACCESS"]),
        SECTORS,
        st.sampled_from(["FLAT", "VMFS", "SPARSE", "ODD"]),
        NAMES,
        st.none() | SECTORS,
        st.just(""),
    ),
    SECTORS.map(lambda sectors: ExtentLine("RW", sectors, "ZERO")),
    st.builds(
        ExtentLine,
        st.just("RW"),
        SECTORS,
        st.just("FLAT"),
        NAMES,
        SECTORS,
        st.from_regex(r"([a-z/]{1,8}( [a-z0-9]{1,8}){0,2})?", fullmatch=True),
    ),
)
DESCRIPTORS = st.builds(
    Descriptor,
    create_type=st.from_regex(r"[A-Za-z0-9]{1,20}", fullmatch=True),
    extents=st.lists(EXTENTS, max_size=6).map(tuple),
    cid=st.none() | st.integers(0, 2**32 - 1),
    parent_cid=st.integers(0, 2**32 - 1),
    version=st.sampled_from(["1", "2", "3"]),
    encoding=st.sampled_from([None, "UTF-8"]),
    settings=st.lists(
        st.tuples(
            KEYS.filter(
                lambda key: (
                    key.lower() not in ("cid", "parentcid", "createtype", "version", "encoding")
                    and not key.lower().startswith("ddb.")
                )
            ),
            VALUES,
        ),
        max_size=4,
    ).map(tuple),
    database=st.lists(st.tuples(KEYS.map("ddb.{}".format), VALUES), max_size=4).map(tuple),
)


@given(DESCRIPTORS)
@example(Descriptor("custom", (ExtentLine("RW", 1, "FLAT", " leading and trailing ", 0),)))
def test_what_is_written_is_read_back(descriptor: Descriptor) -> None:
    data = d.build(descriptor)
    found = parse(data)
    assert found == descriptor
    assert d.build(found) == data
    if found.cid_place is not None:
        offset, digits = found.cid_place
        assert data[offset : offset + len(digits)] == digits


@given(DESCRIPTORS, st.data())
def test_a_damaged_descriptor_is_read_or_refused(
    descriptor: Descriptor, data: st.DataObject
) -> None:
    text = bytearray(d.build(descriptor))
    for _ in range(data.draw(st.integers(1, 5))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = parse(bytes(text))
    except FormatError as error:
        assert error.offset is None or 0 <= error.offset <= len(text)
    else:
        assert len(found.lines) == len(found.extents)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        parse(b'createType="x"\n' + data)
    except FormatError as error:
        assert str(error)
