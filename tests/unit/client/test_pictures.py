"""Pictures from whatever people have."""

import hashlib
from io import BytesIO
from pathlib import Path

import PIL.Image
import pytest

from llava_grpc.client.pictures import by_digest, digest_of, picture, pictures
from llava_grpc.core.prompt import Image
from llava_grpc.errors import ImageInvalidError, ImageUriDisabledError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    PIL.Image.new("RGB", (3, 2), "red").save(path)
    return path


def test_a_file_is_sent_as_it_is(file: Path):
    assert picture(file) == picture(str(file)) == Image(data=file.read_bytes())


def test_bytes_are_sent_as_they_are():
    assert picture(b"abc") == picture(bytearray(b"abc")) == picture(memoryview(b"abc")) == Image(data=b"abc")


def test_a_made_picture_is_left_alone():
    image = Image(sha256=bytes(32))
    assert picture(image) is image


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "F", "HSV", "I;16"])
def test_a_pil_image_of_any_mode_is_sent_as_png(mode: str):
    with PIL.Image.open(BytesIO(picture(PIL.Image.new(mode, (3, 2))).data)) as sent:
        assert (sent.format, sent.size) == ("PNG", (3, 2))


def test_one_picture_need_not_be_in_a_list(file: Path):
    assert pictures(file) == pictures(str(file)) == pictures([file])
    assert pictures(b"a") == (Image(data=b"a"),)
    assert pictures([b"a", b"b"]) == (Image(data=b"a"), Image(data=b"b"))
    assert pictures(PIL.Image.new("L", (1, 1))) == pictures([PIL.Image.new("L", (1, 1))])
    assert pictures(()) == ()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("missing.png", None, "no file"), ("", None, "is a folder"), ("empty.png", b"", "is empty")],
)
def test_a_file_that_is_none_is_told_by_name(tmp_path: Path, name: str, content: bytes | None, words: str):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageInvalidError, match=words) as caught:
        picture(path)
    assert str(path) in caught.value.cause
    assert caught.value.remedy


def test_a_name_that_cannot_be_a_file_is_told():
    with pytest.raises(ImageInvalidError, match="cannot be read"):
        picture("a\0b")


def test_web_addresses_are_not_fetched():
    with pytest.raises(ImageUriDisabledError, match="example"):
        picture("https://example.org/cat.png")


def test_no_bytes_are_no_picture():
    with pytest.raises(ImageInvalidError):
        picture(b"")


def test_what_is_nothing_like_a_picture_is_a_type_error():
    with pytest.raises(TypeError, match="int"):
        picture(7)  # type: ignore[arg-type]


def test_a_picture_can_be_named_by_its_digest():
    digest = hashlib.sha256(b"abc").digest()
    assert by_digest(digest) == by_digest(digest.hex()) == Image(sha256=digest)
    assert digest_of(b"abc") == digest_of(by_digest(digest)) == digest


@pytest.mark.parametrize("digest", ["xyz", "ab", b"short"])
def test_what_is_no_digest_is_refused(digest: str | bytes):
    with pytest.raises(ImageInvalidError):
        by_digest(digest)
