"""Bodies of requests and responses: codes as `.xyc`, JSON or NPZ, audio as WAV, FLAC or Opus."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from xycodec.errors import BitstreamError
from xycodec.io.xyc import CodecFile
from xycodec.models.base import Codec
from xycodec.serve.problems import Problem

XYC, JSON, NPZ = "application/x-xyc", "application/json", "application/x-npz"
WAV, FLAC, OPUS = "audio/wav", "audio/flac", "audio/ogg"
CODES = (XYC, JSON, NPZ)
AUDIO = {WAV: ".wav", FLAC: ".flac", OPUS: ".opus"}
_FIELDS = 8  # of a form; all that are known are fewer


class Codes(BaseModel):
    """Codes of one clip, and what decoding them needs."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, max_length=1024)
    codes: list[list[int]] = Field(description="A row of every codebook, each with as many frames", min_length=1)
    num_samples: int = Field(ge=0, description="Length of the original at the model's input rate")
    sample_rate: int | None = Field(None, description="The model's input rate, Hz; not read")
    frame_rate: float | None = Field(None, description="Frames a second; not read")


def codes_body(file: CodecFile, kind: str) -> bytes:
    """Codes as the body of a response of media type `kind`."""
    if kind == JSON:
        whole = Codes(
            model=file.model,
            codes=file.codes.tolist(),
            num_samples=file.num_samples,
            sample_rate=file.sample_rate,
            frame_rate=file.sample_rate / file.hop_length,
        )
        return whole.model_dump_json().encode()
    if kind == NPZ:
        packed = io.BytesIO()
        np.savez(packed, codes=file.codes, num_samples=file.num_samples, model=np.array(file.model))
        return packed.getvalue()
    return file.to_bytes()


def read_json_codes(body: bytes, codec_named: Any) -> CodecFile:
    """Codes of a JSON body; `codec_named(name)` gives their model. Raises Problem."""
    try:
        given = Codes.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the body"
        raise Problem(422, f"{place}: {first['msg']}") from None
    codec: Codec = codec_named(given.model)
    try:
        codes = np.array(given.codes, np.int64)
    except (ValueError, OverflowError):
        raise Problem(422, "codes must be rows of equal length, of integers") from None
    try:
        return CodecFile.from_codes(codes, codec, num_samples=given.num_samples)
    except BitstreamError as error:
        raise Problem(422, str(error)) from None


async def read_form(request: Request, field: str) -> tuple[bytes, dict[str, str]]:
    """The content of the file in `field` of a form, and the form's other fields. Raises Problem."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Problem(415, f"send a form (multipart/form-data) whose field {field!r} holds the file")
    try:
        async with request.form(max_files=1, max_fields=_FIELDS) as form:
            file = form.get(field)
            if not isinstance(file, UploadFile):
                raise Problem(422, f"the form has no file in its field {field!r}")
            others = {name: value for name, value in form.items() if isinstance(value, str)}
            return await file.read(), others
    except HTTPException as error:
        raise Problem(400, f"the form cannot be read ({error.detail})") from None


def read_layers(given: str | None, codec: Codec) -> int:
    """The number of codebooks that a form asks for: all by default. Raises Problem."""
    if given is None or given == "":
        return codec.n_q
    if not (given.isascii() and given.isdigit() and 1 <= int(given[:4]) <= codec.n_q and len(given) <= 4):
        raise Problem(422, f"n_q must be an integer from 1 to {codec.n_q}")
    return int(given)


def accepted(accept: str | None, offered: Sequence[str]) -> str:
    """The media type to answer with: the one that `accept` likes best, the first offered one by default.

    Raises Problem (406) if it takes none of them.
    """
    wishes = []
    for place, part in enumerate((accept or "*/*").split(",")):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((value for name, _, value in (p.partition("=") for p in parameters) if name == "q"), "1")
        try:
            wishes.append((-float(quality), place, kind))
        except ValueError:
            continue
    for weight, _, kind in sorted(wishes):
        group = kind.removesuffix("*")
        found = next(
            (o for o in offered if o == kind or kind == "*/*" or (group != kind and o.startswith(group))), None
        )
        if found and weight < 0:
            return found
    raise Problem(406, f"this can be had as {', '.join(offered)}: ask for one of them in Accept")
