"""Pictures by URL: data URLs always, addresses only where the gateway was told which hosts it may fetch from.

Laws of fetching: only from hosts on the list; never from an address that is not public, whatever name it goes by, and
the address that was checked is the one that is dialled; no redirects; bounded in bytes and in time.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import unquote_to_bytes

import httpx

from llava_grpc.config import GatewaySettings
from llava_grpc.core.prompt import Image
from llava_grpc.errors import ImageInvalidError, ImageTooLargeError, ImageUriDisabledError

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Host and port to its addresses."""

_DATA_URL = re.compile(r"data:(?P<type>[\w.+/-]*)(?P<parameters>(;[\w.+-]+(=[\w.+-]*)?)*),", re.ASCII)


async def resolve(host: str, port: int) -> list[str]:
    """As the system does it."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[4][0]) for address in found]


def is_public(address: str) -> bool:
    """Whether an address is one of the internet at large."""
    return ipaddress.ip_address(address.partition("%")[0]).is_global


class Pictures:
    """See the module. Close it."""

    def __init__(
        self, settings: GatewaySettings, resolve: Resolve = resolve, is_public: Callable[[str], bool] = is_public
    ) -> None:
        self._settings = settings
        self._resolve = resolve
        self._is_public = is_public
        self._http = httpx.AsyncClient(
            follow_redirects=False, trust_env=False, timeout=settings.image_timeout, headers={"Accept": "image/*"}
        )

    async def close(self) -> None:
        """Let go of connections."""
        await self._http.aclose()

    async def at(self, url: str) -> Image:
        """The picture there.

        Raises:
            ImageInvalidError: the URL is none, or nothing can be had there.
            ImageUriDisabledError: pictures may not be fetched from there.
            ImageTooLargeError: it has more bytes than may be fetched.
        """
        if url.startswith("data:"):
            return Image(data=_decoded(url))
        if not url.startswith(("http://", "https://")):
            raise ImageInvalidError(
                f"{_short(url)} is no URL of a picture", remedy="Send a data URL: data:image/png;base64,..."
            )
        try:
            async with asyncio.timeout(self._settings.image_timeout):
                return Image(data=await self._fetch(url))
        except TimeoutError:
            raise ImageInvalidError(
                f"{_short(url)} was not fetched within {self._settings.image_timeout:g} s", remedy="Send it by value"
            ) from None

    async def _fetch(self, url: str) -> bytes:
        try:
            target = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ImageInvalidError(f"{_short(url)} is no URL: {error}") from error
        host = target.host.lower().rstrip(".")
        if not any(_matches(host, allowed) for allowed in self._settings.image_hosts):
            raise ImageUriDisabledError(
                f"pictures may not be fetched from {host or _short(url)}",
                remedy="Send the picture as a data URL, or have the gateway allow the host (--allow-image-host)",
            )
        address = await self._checked_address(host, target.port or (443 if target.scheme == "https" else 80))
        request = self._http.build_request(
            "GET", target.copy_with(host=address), headers={"Host": target.netloc.decode("ascii")}
        )
        request.extensions["sni_hostname"] = host
        try:
            response = await self._http.send(request, stream=True)
            try:
                return await self._body(url, response)
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            raise ImageInvalidError(
                f"{_short(url)} cannot be fetched: {error or type(error).__name__}", remedy="Send it by value"
            ) from error

    async def _checked_address(self, host: str, port: int) -> str:
        try:
            addresses = await self._resolve(host, port)
        except OSError as error:
            raise ImageInvalidError(f"the host {host} is not known: {error}") from error
        if not addresses or not all(self._is_public(address) for address in addresses):
            raise ImageUriDisabledError(f"the host {host} is not on the public internet")
        return addresses[0]

    async def _body(self, url: str, response: httpx.Response) -> bytes:
        if response.status_code != 200:
            raise ImageInvalidError(f"{_short(url)} answered {response.status_code}", remedy="Send it by value")
        body = bytearray()
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > self._settings.image_bytes:
                raise ImageTooLargeError(f"{_short(url)} has more than {self._settings.image_bytes:,} bytes")
        return bytes(body)


def _matches(host: str, allowed: str) -> bool:
    """`*.example.com` allows whatever ends in `.example.com`."""
    return host.endswith(allowed[1:]) if allowed.startswith("*.") else host == allowed


def _decoded(url: str) -> bytes:
    head = _DATA_URL.match(url)
    if head is None:
        raise ImageInvalidError("a data URL without a comma", remedy="Write data:image/png;base64,...")
    content = url[head.end() :]
    if not head["parameters"].endswith(";base64"):
        data = unquote_to_bytes(content)
    else:
        try:
            data = base64.b64decode(content.translate(_URL_SAFE), validate=True)
        except (binascii.Error, ValueError) as error:
            raise ImageInvalidError(f"a data URL is not base64: {error}") from error
    if not data:
        raise ImageInvalidError("a data URL is empty")
    return data


_URL_SAFE = str.maketrans("-_", "+/", " \t\r\n")


def _short(url: str) -> str:
    return url if len(url) <= 80 else f"{url[:77]}..."
