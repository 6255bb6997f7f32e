"""The hospital's archive over DICOMweb: QIDO-RS to list, WADO-RS to retrieve (PS3.18 sections 10.6 and 10.4).

Every address comes from the configuration: redirects, proxies and certificate bundles from the environment are not followed.
Messages name no UID and quote no answer.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import urllib3
from dicomweb_client.web import DICOMwebClient
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from blocks.endpoint import NotingContext
from blocks.multipart import Part, boundary_of, parts
from rapha.canonical import nesting
from rapha.errors import PeerError

ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
PAGE = 500
MAX_PAGE_BYTES = 64 << 20
MAX_NESTING = 64
BLOCK = 1 << 18
# The client logs UIDs, the pool whole request lines: neither may.
for _name in ("dicomweb_client", "urllib3"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)

Answer = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """Seconds. idle: without a byte; whole: one request, however it drips."""

    connect: float = 5.0
    idle: float = 30.0
    whole: float = 3600.0


@dataclass(frozen=True)
class WebTls:
    """How requests are secured: by `context` alone. name: in the peer's certificate, the address's host when None."""

    context: NotingContext
    ca_bundle: Path
    name: str | None = None

    def pool(self) -> dict[str, Any]:
        """Settings of a pool of connections."""
        named = {"server_hostname": self.name, "assert_hostname": self.name} if self.name else {}
        return {"ssl_context": self.context, "ca_certs": str(self.ca_bundle), **named}


def raw_query(target: str) -> str:
    """A request target with `*`, `^`, `,`, `-` and `:` of its query left raw; a blank becomes the wildcard `*`.

    Archives match the value as sent: Orthanc 1.10 does not decode it, so an encoded wildcard or name silently finds nothing.
    """
    path, mark, query = target.partition("?")
    for code, plain in (("%2A", "*"), ("%5E", "^"), ("%2C", ","), ("%2D", "-"), ("%3A", ":"), ("%20", "*"), ("+", "*")):
        query = query.replace(code, plain).replace(code.lower(), plain)
    return path + mark + query


class _RawHttp(HTTPConnection):
    def putrequest(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        super().putrequest(method, raw_query(url), *args, **kwargs)


class _RawHttps(HTTPSConnection):
    def putrequest(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        super().putrequest(method, raw_query(url), *args, **kwargs)


class _RawHttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _RawHttp


class _RawHttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _RawHttps


class _RawAdapter(HTTPAdapter):
    """requests' transport, with query strings as the archive reads them and the endpoint's TLS."""

    def __init__(self, tls: WebTls | None) -> None:
        self._secured: dict[str, Any] = tls.pool() if tls else {}
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **{**kwargs, **self._secured})
        self.poolmanager.pool_classes_by_scheme = {"http": _RawHttpPool, "https": _RawHttpsPool}


class _Session(requests.Session):
    """A session that reads bounded answers from the configured archive alone."""

    def __init__(self, ca: Path | None, whole: float, tls: WebTls | None) -> None:
        super().__init__()
        self.trust_env = False
        self.verify = str(tls.ca_bundle) if tls else str(ca) if ca else True
        self._whole = whole
        self.mount("http://", _RawAdapter(None))
        self.mount("https://", _RawAdapter(tls))

    def get(self, url: str | bytes, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        kwargs["headers"] = {k: v for k, v in (kwargs.get("headers") or {}).items() if k != "Host"}  # it leaves the port out
        kwargs["headers"]["Accept-Encoding"] = "identity"
        response = super().get(url, **{**kwargs, "stream": True, "allow_redirects": False})
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise PeerError("pacs-answer-odd", "the archive compresses what it was asked to send plain", peer="pacs")
        body, end = bytearray(), time.monotonic() + self._whole
        while block := response.raw.read1(BLOCK):
            body += block
            if len(body) > MAX_PAGE_BYTES or time.monotonic() > end:
                response.close()
                raise PeerError("pacs-answer-too-large", "the archive's answer to a query does not end", peer="pacs")
        if response.status_code not in (200, 204):
            raise web_status("pacs", "a query", response.status_code)
        response._content = bytes(body)
        if nesting(response._content) > MAX_NESTING:
            raise PeerError("pacs-answer-odd", "the archive's answer nests deeper than any DICOM JSON", peer="pacs")
        return response


class DicomWeb:
    """One archive. Safe to use from several threads for retrieval.

    base_url: the DICOMweb root; ca: PEM bundle that replaces the system's; tls: the endpoint's own TLS, instead; token: bearer
    token, if the archive wants one. Every failure, refusal or odd answer of the archive is a `PeerError` pacs-…, or tls-….
    """

    def __init__(
        self,
        base_url: str,
        *,
        timeouts: Timeouts | None = None,
        ca: Path | None = None,
        token: str | None = None,
        max_instance_bytes: int = 8 << 30,
        tls: WebTls | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._timeouts = timeouts or Timeouts()
        self._max_bytes = max_instance_bytes
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = DICOMwebClient(
            self.base_url,
            session=_Session(ca, self._timeouts.whole, tls),
            headers=dict(self._headers),
            permissive_uid=True,
            timeout=(self._timeouts.connect, self._timeouts.idle),
        )
        self._client.set_http_retry_params(retry=False)
        self._tls = tls
        secured = tls.pool() if tls else {"ca_certs": str(ca) if ca else None}
        self._pool = urllib3.PoolManager(maxsize=4, block=True, retries=False, **secured)

    def list_instances(self, filters: Mapping[str, str], fields: tuple[str, ...], *, most: int = 1_000_000) -> list[Answer]:
        """Every instance that matches `filters` (attribute keyword -> value), page by page, in DICOM JSON.

        Raises `PeerError` pacs-paging-odd when a page repeats instances, pacs-too-many beyond `most`.
        """
        found: dict[str, Answer] = {}
        while page := self._page("instances", filters, fields, len(found)):
            for answer in page:
                uid = value_of(answer, "00080018")
                if not uid or uid in found:
                    raise PeerError("pacs-paging-odd", "the archive names an instance twice or not at all", peer="pacs")
                found[uid] = answer
            if len(found) > most:
                raise PeerError("pacs-too-many", f"the archive lists more than {most} instances", peer="pacs")
        return list(found.values())

    def list_studies(self, filters: Mapping[str, str], fields: tuple[str, ...] = (), *, limit: int = PAGE) -> list[Answer]:
        """The first `limit` studies that match `filters`, in DICOM JSON."""
        return self._page("studies", filters, fields, 0, limit)

    def _page(
        self, level: str, filters: Mapping[str, str], fields: tuple[str, ...], offset: int, limit: int = PAGE
    ) -> list[Answer]:
        search = self._client.search_for_instances if level == "instances" else self._client.search_for_studies
        try:
            page = search(limit=limit, offset=offset, fields=list(fields), search_filters=dict(filters))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
            raise PeerError("pacs-answer-odd", "the archive's answer to a query is not DICOM JSON", peer="pacs") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise web_failure("pacs-unreachable", "did not answer a query", error, self._tls) from None
        if not isinstance(page, list) or not all(isinstance(answer, dict) for answer in page):
            raise PeerError("pacs-answer-odd", "the archive's answer to a query is not DICOM JSON", peer="pacs")
        return page

    @contextmanager
    def retrieve(self, study: str, series: str | None = None, instance: str | None = None) -> Iterator[Iterator[Part]]:
        """The objects of a study, series or instance as they are stored, one part each, as a stream.

        Raises `PeerError` pacs-truncated for an answer that ends early: what was read until then is not to be used.
        """
        path = "/".join(
            [f"studies/{study}", *([f"series/{series}"] if series else []), *([f"instances/{instance}"] if instance else [])]
        )
        timeout = urllib3.Timeout(connect=self._timeouts.connect, read=self._timeouts.idle)
        headers = {"Accept": ACCEPT, "Accept-Encoding": "identity", **self._headers}
        response = None
        try:
            response = self._pool.request(
                "GET", f"{self.base_url}/{path}", headers=headers, timeout=timeout, preload_content=False, redirect=False
            )
            if response.status != 200:
                raise web_status("pacs", "a retrieval", response.status)
            yield self._dicom_parts(response)
        except urllib3.exceptions.HTTPError as error:
            raise web_failure("pacs-retrieve", "broke off a retrieval", error, self._tls) from None
        finally:
            if response is not None:
                response.close()
                response.release_conn()  # a closed connection must go back too, or the pool runs dry

    def _dicom_parts(self, response: urllib3.BaseHTTPResponse) -> Iterator[Part]:
        boundary = boundary_of(response.headers.get("Content-Type", ""))
        for part in parts(self._blocks(response), boundary):
            if not part.headers.get("content-type", "").lower().startswith("application/dicom"):
                raise PeerError("pacs-multipart-odd", "the archive sent a part that is not DICOM", peer="pacs")
            yield Part(part.headers, self._bounded(part.body))

    def _blocks(self, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        end = time.monotonic() + self._timeouts.whole
        while block := response.read1(BLOCK):  # one receive at a time, so that a drip is seen for what it is
            if time.monotonic() > end:
                raise PeerError("pacs-slow", "the archive's answer does not end", peer="pacs")
            yield block

    def _bounded(self, body: Iterator[bytes]) -> Iterator[bytes]:
        size = 0
        for block in body:
            size += len(block)
            if size > self._max_bytes:
                raise PeerError("pacs-instance-too-large", f"an instance is larger than {self._max_bytes} bytes", peer="pacs")
            yield block


def web_failure(code: str, what: str, error: Exception, tls: WebTls | None) -> PeerError:
    """`code`, or why the TLS handshake failed."""
    if tls is not None and tls.context.failure:
        return PeerError(tls.context.failure, "the TLS handshake with the archive failed", peer="pacs")
    return PeerError(code, f"the archive {what} ({type(error).__name__})", peer="pacs")


def web_status(kind: str, what: str, status: int) -> PeerError:
    """What a status means that is no success: …-login (401), …-unavailable (502, 503, 504: for everybody), else …-status."""
    code = {401: f"{kind}-login"} | dict.fromkeys((502, 503, 504), f"{kind}-unavailable")
    return PeerError(code.get(status, f"{kind}-status"), f"the archive answered {what} with status {status}", peer="pacs")


def value_of(answer: Mapping[str, Any], tag: str) -> str:
    """The first value of an attribute in DICOM JSON as text; empty when absent."""
    attribute = answer.get(tag)
    values = attribute.get("Value") if isinstance(attribute, Mapping) else None
    first = values[0] if isinstance(values, list) and values else ""
    return str(first).strip(" \x00") if isinstance(first, str | int | float) else ""
