"""Pictures by URL: what is decoded, and from where nothing is ever fetched."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from llava_grpc.config import GatewaySettings
from llava_grpc.errors import ImageInvalidError, ImageTooLargeError, ImageUriDisabledError, LlavaGrpcError
from llava_grpc.gateway.pictures import Pictures, is_public


@asynccontextmanager
async def fetching(
    *hosts: str, resolves_to: str = "127.0.0.1", public: bool = True, **settings: float
) -> AsyncIterator[Pictures]:
    """A fetcher that takes loopback for the internet."""

    async def resolve(host: str, port: int) -> list[str]:
        if host == "nowhere.example":
            raise OSError("Name or service not known")
        return [resolves_to]

    given = GatewaySettings(port=0, image_hosts=hosts, **settings)  # type: ignore[arg-type]
    pictures = Pictures(given, resolve, is_public=(lambda address: True) if public else is_public)
    try:
        yield pictures
    finally:
        await pictures.close()


@asynccontextmanager
async def site(answer: bytes, pause: asyncio.Event | None = None) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A web site with one answer for all; its port, and what it was asked."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        if pause is not None:
            await pause.wait()
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], asked
    finally:
        if pause is not None:
            pause.set()
        server.close()


def page(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers])
    return head.encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,aGVsbG8=",
        "data:;base64,aGVsbG8=",
        "data:image/png;name=x.png;base64,aGVsbG8=",
        "data:image/png;base64,aGVs\r\nbG8=",
        "data:image/png,hello",
        "data:,h%65llo",
    ],
)
async def test_data_urls_are_pictures_by_value(url: str):
    async with fetching() as pictures:
        assert (await pictures.at(url)).data == b"hello"


@pytest.mark.parametrize(
    "url", ["data:image/png;base64,a", "data:image/png;base64,", "data:x", "data:image/png;base64,?", "file:///x", ""]
)
async def test_what_is_no_picture_is_said(url: str):
    async with fetching() as pictures:
        with pytest.raises(ImageInvalidError):
            await pictures.at(url)


async def test_url_safe_base64_is_read_too():
    async with fetching() as pictures:
        assert (await pictures.at("data:image/png;base64,-_8=")).data == b"\xfb\xff"


async def test_a_picture_is_fetched_from_a_host_on_the_list_by_its_name():
    async with site(page(b"a picture")) as (port, asked), fetching("pictures.example") as pictures:
        assert (await pictures.at(f"http://pictures.example:{port}/cat.png?x=1")).data == b"a picture"
    assert asked[0].startswith(b"GET /cat.png?x=1 HTTP/1.1")
    assert f"host: pictures.example:{port}".encode() in asked[0].lower()


@pytest.mark.parametrize(
    ("allowed", "host", "may"),
    [
        ("a.example", "a.example", True),
        ("a.example", "b.example", False),
        ("a.example", "x.a.example", False),
        ("*.a.example", "x.a.example", True),
        ("*.a.example", "evil-a.example", False),
        ("*.a.example", "a.example", False),
        ("a.example", "A.EXAMPLE.", True),
    ],
)
async def test_the_list_says_from_where(allowed: str, host: str, may: bool):
    async with site(page(b"x")) as (port, _), fetching(allowed) as pictures:
        if may:
            assert (await pictures.at(f"http://{host}:{port}/")).data == b"x"
        else:
            with pytest.raises(ImageUriDisabledError):
                await pictures.at(f"http://{host}:{port}/")


async def test_without_a_list_nothing_is_fetched():
    async with fetching() as pictures:
        with pytest.raises(ImageUriDisabledError, match="--allow-image-host"):
            await pictures.at("https://example.com/cat.png")


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.7", "192.168.1.1", "169.254.169.254", "::1", "fe80::1%eth0", "100.64.0.1", "0.0.0.0"],
)
async def test_a_name_that_leads_inside_is_never_followed(address: str):
    async with fetching("a.example", resolves_to=address, public=False) as pictures:
        with pytest.raises(ImageUriDisabledError, match="public"):
            await pictures.at("http://a.example/")


def test_what_is_public_is_what_the_registries_say():
    assert is_public("93.184.216.34")
    assert is_public("2606:2800:220:1:248:1893:25c8:1946")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (page(b"gone", "404 Not Found"), ImageInvalidError),
        (page(b"", "302 Found", "Location: http://169.254.169.254/"), ImageInvalidError),
        (page(b"x" * 2000), ImageTooLargeError),
        (b"nonsense", ImageInvalidError),
    ],
    ids=["missing", "redirect", "large", "nonsense"],
)
async def test_what_cannot_be_had_is_said(answer: bytes, error: type[LlavaGrpcError]):
    async with site(answer) as (port, asked), fetching("a.example", image_bytes=1000) as pictures:
        with pytest.raises(error):
            await pictures.at(f"http://a.example:{port}/")
    assert len(asked) == 1


async def test_one_that_never_comes_is_given_up():
    async with site(page(b"x"), asyncio.Event()) as (port, _), fetching("a.example", image_timeout=0.05) as pictures:
        with pytest.raises(ImageInvalidError, match="within"):
            await pictures.at(f"http://a.example:{port}/")


async def test_an_unknown_host_is_said():
    async with fetching("nowhere.example") as pictures:
        with pytest.raises(ImageInvalidError, match="not known"):
            await pictures.at("http://nowhere.example/")
