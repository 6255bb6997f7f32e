"""A small archive that speaks DICOMweb (PS3.18): QIDO-RS, WADO-RS, STOW-RS over a folder of files.

It keeps what it is given, byte for byte, and gives it back so: ask it for `transfer-syntax=*`, it transcodes nothing. It listens
on loopback, or on sockets that were opened for it. For the demo and for tests; no access control, which loopback stands in for.
"""

import io
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from starlette.concurrency import run_in_threadpool

from blocks.multipart import boundary_of, parts
from infra.hospital.cohort import file_name
from infra.hospital.index import INSTANCE, LEVELS, STUDY, Index, Stored, tag_of
from rapha.errors import PeerError

PREFIX = "/dicom-web"
PAGE = 1000
MAX_STORE = 512 << 20
JSON_TYPE = "application/dicom+json"
DUPLICATE, CANNOT_UNDERSTAND, OTHER_STUDY = 0x0111, 0xC000, 0xA900


def application(folder: Path, index: Index | None = None) -> FastAPI:
    """The archive over `folder`, under the path `/dicom-web`; with an index that another door of it shares."""
    folder.mkdir(parents=True, exist_ok=True)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    archive = Archive(folder, index or Index(folder))
    for path, level in (
        ("/studies", "studies"),
        ("/studies/{study}/series", "series"),
        ("/series", "series"),
        ("/studies/{study}/instances", "instances"),
        ("/studies/{study}/series/{series}/instances", "instances"),
        ("/instances", "instances"),
    ):
        app.add_api_route(PREFIX + path, archive.query(level), methods=["GET"])
    for path in ("/studies/{study}", "/studies/{study}/series/{series}", "/studies/{study}/series/{series}/instances/{instance}"):
        app.add_api_route(PREFIX + path, archive.retrieve, methods=["GET"])
        app.add_api_route(PREFIX + path + "/metadata", archive.metadata, methods=["GET"])
    for path in ("/studies", "/studies/{study}"):
        app.add_api_route(PREFIX + path, archive.store, methods=["POST"])
    return app


class Archive:
    """The handlers. Each answers from the index; files are read as they are sent."""

    def __init__(self, folder: Path, index: Index) -> None:
        self._folder = folder
        self._index = index

    def query(self, level: str) -> Any:
        """The handler of a search at a level."""

        def search(request: Request) -> Response:
            try:
                keys, fields, first, most = _read_query(request)
            except ValueError:
                return Response(status_code=400)
            found = list(self._index.find(level, keys, fields))[first : first + most]
            return _json(found)

        return search

    def retrieve(self, request: Request) -> Response:
        """WADO-RS: the files as they are stored, one part each, with its length."""
        found = self._index.under(**request.path_params)
        if not found:
            return Response(status_code=404)
        if not _acceptable(request.headers.get("accept", "*/*"), found):
            return Response(status_code=406)
        boundary = uuid.uuid4().hex
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        return StreamingResponse(_multipart(found, boundary), media_type=kind)

    def metadata(self, request: Request) -> Response:
        """WADO-RS metadata: DICOM JSON with bulk data by reference."""
        found = self._index.under(**request.path_params)
        host, port = request.scope["server"]  # not the Host header: clients leave the port out of it
        base = f"{request.url.scheme}://{host}:{port}{PREFIX}"
        return _json([_referenced(stored, base) for stored in found]) if found else Response(status_code=404)

    async def store(self, request: Request) -> Response:
        """STOW-RS: 200 when all were stored, 202 when some, 409 when none, 400 for what is no multipart body."""
        body = bytearray()
        async for block in request.stream():
            body += block
            if len(body) > MAX_STORE:
                return Response(status_code=413)
        return await run_in_threadpool(self._store, bytes(body), request)

    def _store(self, body: bytes, request: Request) -> Response:
        try:
            boundary = boundary_of(request.headers.get("content-type", ""))
            files = [b"".join(part.body) for part in parts([body], boundary)]
        except PeerError:
            return Response(status_code=400)
        outcomes = [self._store_one(file, request.path_params.get("study")) for file in files]
        failed = [item for reason, item in outcomes if reason]
        stored = [item for reason, item in outcomes if not reason]
        answer = {tag: {"vr": "SQ", "Value": items} for tag, items in (("00081198", failed), ("00081199", stored)) if items}
        return _json(answer, status=200 if not failed else 202 if stored else 409)

    def _store_one(self, file: bytes, study: str | None) -> tuple[int, dict[str, Any]]:
        try:
            dataset = dcmread(io.BytesIO(file))
            uids = (str(dataset.SOPClassUID), str(dataset.SOPInstanceUID), str(dataset.StudyInstanceUID))
            str(dataset.SeriesInstanceUID), str(dataset.file_meta.TransferSyntaxUID)
        except (InvalidDicomError, AttributeError, ValueError, EOFError):
            return CANNOT_UNDERSTAND, _outcome("", "", CANNOT_UNDERSTAND)
        path = self._folder / file_name(uids[1])
        if study not in (None, uids[2]):
            return OTHER_STUDY, _outcome(uids[0], uids[1], OTHER_STUDY)
        if uids[1] in self._index and self._index.path(uids[1]).read_bytes() != file:
            return DUPLICATE, _outcome(uids[0], uids[1], DUPLICATE)
        if uids[1] in self._index:
            return 0, _outcome(uids[0], uids[1], 0)
        path.write_bytes(file)
        self._index.add(path, dataset)
        return 0, _outcome(uids[0], uids[1], 0)


def _read_query(request: Request) -> tuple[dict[str, str], list[str], int, int]:
    """(keys by tag, fields to return, offset, limit). Raises `ValueError` for a name or number that it does not know."""
    keys: dict[str, str] = {}
    fields: list[str] = []
    first, most = 0, PAGE
    for name, value in request.query_params.multi_items():
        if name == "offset":
            first = max(0, int(value))
        elif name == "limit":
            most = min(PAGE, max(0, int(value)))
        elif name == "includefield":
            fields += [field if field == "all" else tag_of(field) or "" for field in value.split(",")]
        elif name != "fuzzymatching":
            keys[_known(name)] = value
    for name, level in (("study", STUDY), ("series", LEVELS["series"][0])):
        if name in request.path_params:
            keys[level] = request.path_params[name]
    return keys, fields, first, most


def _known(name: str) -> str:
    tag = tag_of(name)
    if tag is None:
        raise ValueError("unknown key")
    return tag


def _acceptable(accept: str, found: list[Stored]) -> bool:
    """Whether the stored files are among what the client takes (PS3.18 section 8.7): no transcoding is done."""
    kinds = accept.replace('"', "").replace(" ", "").split(",")
    for kind in kinds:
        syntax = kind.partition("transfer-syntax=")[2].partition(";")[0] or "*"
        fits = kind.startswith("*/*") or "application/dicom" in kind.split(";")[0] or "type=application/dicom" in kind.split(";")
        if fits and (syntax == "*" or all(stored.transfer_syntax == syntax for stored in found)):
            return True
    return False


def _multipart(found: list[Stored], boundary: str) -> Iterator[bytes]:
    for stored in found:
        content = stored.path.read_bytes()
        kind = f"Content-Type: application/dicom; transfer-syntax={stored.transfer_syntax}"
        yield f"--{boundary}\r\n{kind}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content + b"\r\n"
    yield f"--{boundary}--\r\n".encode()


def _referenced(stored: Stored, base: str) -> dict[str, Any]:
    series = stored.uid(LEVELS["series"][0])
    place = f"{base}/studies/{stored.uid(STUDY)}/series/{series}/instances/{stored.uid(INSTANCE)}/bulk/"
    return {
        tag: {"vr": attribute["vr"], "BulkDataURI": place + tag} if "BulkDataURI" in attribute else attribute
        for tag, attribute in stored.attributes.items()
    }


def _outcome(sop_class: str, instance: str, reason: int) -> dict[str, Any]:
    """An item of Referenced or Failed SOP Sequence (PS3.18 table 10.5.3-1)."""
    item: dict[str, Any] = {
        "00081150": {"vr": "UI", "Value": [sop_class] if sop_class else []},
        "00081155": {"vr": "UI", "Value": [instance] if instance else []},
    }
    return {**item, "00081197": {"vr": "US", "Value": [reason]}} if reason else item


def _json(value: Any, *, status: int = 200) -> Response:
    return Response(json.dumps(value, ensure_ascii=False).encode(), status_code=status, media_type=JSON_TYPE)
