"""Everything that can go wrong with a request, as one tree of exceptions.

    ServiceError
    ├── MalformedHttp           400  the bytes are not HTTP
    ├── MalformedJson           400  the bytes are not JSON, or the nesting is too deep
    ├── MalformedMessage        400  the bytes are not the method's message
    ├── InvalidRequest          422  the JSON or message is not a request this model can serve
    ├── Unauthenticated         401
    ├── Forbidden               403
    ├── UnknownModel            404
    ├── UnknownLatent           404
    ├── UnknownRoute            404
    ├── MethodNotAllowed        405
    ├── RequestTimeout          408
    ├── BodyTooLarge            413
    ├── UnsupportedMediaType    415
    ├── TooManyHeaders          431  more fields in a request head than the server reads
    ├── Overloaded              429
    ├── RateLimited             429
    ├── Cancelled               499
    ├── Internal                500
    ├── NonFiniteResult         500  the model's numbers overflow
    ├── ReloadFailed            500  a model folder that was read again cannot be used
    ├── Loading                 503
    ├── Draining                503
    ├── Restarting              503
    ├── Failed                  503
    └── DeadlineExceeded        504

Where each is raised, on the way from bytes to a plan:

    bytes ──transport──▶ document ──requests──▶ request ──planner──▶ plan
      │ MalformedHttp       │ InvalidRequest       │ Loading, Draining, Failed, Overloaded
      │ UnknownRoute        │                      │ UnknownModel, UnknownLatent
      │ MethodNotAllowed    │                      │ InvalidRequest (what the model decides)
      │ UnsupportedMediaType│                      │ DeadlineExceeded, Cancelled
      │ BodyTooLarge        │                      │ Internal (anything unexpected), NonFiniteResult
      │ RequestTimeout, Overloaded (too many connections or bytes), TooManyHeaders
      │ Unauthenticated, Forbidden, RateLimited
      │ MalformedJson, MalformedMessage       ReloadFailed (`/admin/models/reload` alone)

An error knows its HTTP status and the name of its gRPC status. Transports only write it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

MAX_RECEIVED_CHARACTERS = 80
"""How much of a received value an error message repeats."""

INVALID_REQUEST_CODES = (
    "conflicting_fields",
    "image_too_large",
    "invalid_choice",
    "invalid_image",
    "missing_field",
    "not_finite",
    "not_square",
    "out_of_range",
    "shape_mismatch",
    "unknown_field",
    "unknown_solver",
    "wrong_type",
)


class Unquoted(str):
    """Our own description of a received value. `shorten` quotes all other strings."""


def shorten(value: object, limit: int = MAX_RECEIVED_CHARACTERS) -> str:
    """Describe a received value in at most ``limit`` characters. Large values cost little."""
    match value:
        case None:
            text = "null"
        case bool():
            text = "true" if value else "false"
        case int() if value.bit_length() > 256:
            text = f"an integer of {value.bit_length()} bits"
        case Unquoted():
            text = str(value)
        case str():
            text = repr(value if len(value) < limit else value[: limit - 5] + "…")
        case bytes() | bytearray() | memoryview():
            text = f"{len(value)} bytes"
        case list() | tuple():
            inner = ", ".join(shorten(item, 20) for item in value[:4])
            text = f"[{inner}]" if len(value) <= 4 else f"[{inner}, …] ({len(value)} items)"
        case Mapping():
            text = f"an object with {len(value)} fields"
        case _ if hasattr(value, "shape"):
            text = f"an array of shape {list(value.shape)}"
        case _:
            text = str(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


@dataclass(frozen=True)
class FieldProblem:
    """One refused field: its path, what was received and what was expected."""

    field: str
    code: str
    received: str
    expected: str

    def __str__(self) -> str:
        return f"{self.field}: received {self.received}, expected {self.expected}"


class ServiceError(Exception):
    """An error that the client is told about.

    Attributes:
        detail: one sentence for people.
        code: a stable name for programs.
        errors: the refused fields, if any.
        retry_after_s: seconds after which a retry makes sense; None if that is not known.
    """

    status: ClassVar[int]
    grpc_status: ClassVar[str]
    title: ClassVar[str]
    code: str

    def __init__(
        self,
        detail: str,
        *,
        errors: Iterable[FieldProblem] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.retry_after_s = retry_after_s

    def problem(self, request_id: str) -> dict[str, Any]:
        """The error as an RFC 9457 problem document."""
        document: dict[str, Any] = {
            "type": f"urn:lewm:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
        }
        if self.errors:
            document["errors"] = [vars(problem) for problem in self.errors]
        return document


class InvalidRequest(ServiceError):
    """The request was understood, but it cannot be served as it is.

    Args:
        code: one of `INVALID_REQUEST_CODES`.
        field: the path of the field, such as ``frames[0].pixels.shape``.
        received: the received value; it is shortened.
        expected: a phrase that completes "expected …".
    """

    status = 422
    grpc_status = "INVALID_ARGUMENT"
    title = "Invalid request"

    def __init__(self, code: str, field: str, *, received: object, expected: str) -> None:
        self._describe(
            FieldProblem(field=field, code=code, received=shorten(received), expected=expected)
        )

    @classmethod
    def of(cls, *problems: FieldProblem) -> "InvalidRequest":
        """One error for several fields. The first one gives the code."""
        error = cls.__new__(cls)
        error._describe(*problems)
        return error

    @classmethod
    def missing(cls, field: str, expected: str) -> "InvalidRequest":
        """The error for a required field that was left out."""
        return cls("missing_field", field, received=Unquoted("nothing"), expected=expected)

    def _describe(self, *problems: FieldProblem) -> None:
        self.code = problems[0].code
        super().__init__("; ".join(map(str, problems[:3])), errors=problems)


class MalformedHttp(ServiceError):
    """The bytes on the connection are not HTTP, or a request head is too long."""

    status = 400
    grpc_status = "INVALID_ARGUMENT"
    code = "malformed_http"
    title = "Malformed HTTP"


class MalformedJson(ServiceError):
    """The body is not JSON, or its nesting is too deep."""

    status = 400
    grpc_status = "INVALID_ARGUMENT"
    code = "malformed_json"
    title = "Malformed JSON"


class MalformedMessage(ServiceError):
    """The bytes of a gRPC call are not the method's message."""

    status = 400
    grpc_status = "INVALID_ARGUMENT"
    code = "malformed_message"
    title = "Malformed message"


class Unauthenticated(ServiceError):
    """The server asks for a key, and the request has none or a wrong one."""

    status = 401
    grpc_status = "UNAUTHENTICATED"
    code = "unauthenticated"
    title = "Unauthenticated"


class Forbidden(ServiceError):
    """The key does not have the role that the request needs."""

    status = 403
    grpc_status = "PERMISSION_DENIED"
    code = "forbidden"
    title = "Forbidden"


class UnknownModel(ServiceError):
    """The server has no model of this name."""

    status = 404
    grpc_status = "NOT_FOUND"
    code = "unknown_model"
    title = "Unknown model"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        problem = FieldProblem(
            field="model",
            code=self.code,
            received=shorten(name),
            expected=f"one of {', '.join(known)}",
        )
        super().__init__(str(problem), errors=[problem])


class UnknownLatent(ServiceError):
    """The cache does not hold this `latent_id` (any more)."""

    status = 404
    grpc_status = "NOT_FOUND"
    code = "unknown_latent"
    title = "Unknown latent"

    def __init__(self, field: str, latent_id: str) -> None:
        problem = FieldProblem(
            field=field,
            code=self.code,
            received=shorten(latent_id),
            expected="a latent_id still in the cache; send the frame again",
        )
        super().__init__(str(problem), errors=[problem])


class UnknownRoute(ServiceError):
    """There is no such path or gRPC method."""

    status = 404
    grpc_status = "UNIMPLEMENTED"
    code = "unknown_route"
    title = "Unknown route"


class MethodNotAllowed(ServiceError):
    """The path exists, but not for this HTTP method."""

    status = 405
    grpc_status = "UNIMPLEMENTED"
    code = "method_not_allowed"
    title = "Method not allowed"


class RequestTimeout(ServiceError):
    """The request head or body took too long to arrive."""

    status = 408
    grpc_status = "DEADLINE_EXCEEDED"
    code = "request_timeout"
    title = "Request timeout"


class BodyTooLarge(ServiceError):
    """The body is larger than the server accepts."""

    status = 413
    grpc_status = "RESOURCE_EXHAUSTED"
    code = "body_too_large"
    title = "Body too large"


class UnsupportedMediaType(ServiceError):
    """The body is not declared as JSON."""

    status = 415
    grpc_status = "INVALID_ARGUMENT"
    code = "unsupported_media_type"
    title = "Unsupported media type"


class TooManyHeaders(ServiceError):
    """The head or the trailer section of a request has too many fields."""

    status = 431
    grpc_status = "INVALID_ARGUMENT"
    code = "too_many_headers"
    title = "Too many headers"


class Overloaded(ServiceError):
    """The server has too much work to serve the request in time."""

    status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    code = "overloaded"
    title = "Overloaded"

    def __init__(self, retry_after_s: float, detail: str = "the queue is full") -> None:
        super().__init__(detail, retry_after_s=retry_after_s)


class RateLimited(ServiceError):
    """The key has sent more requests than its limits allow."""

    status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    code = "rate_limited"
    title = "Rate limited"

    def __init__(self, retry_after_s: float, detail: str) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)


class Cancelled(ServiceError):
    """The client disconnected. Nobody reads the answer."""

    status = 499
    grpc_status = "CANCELLED"
    code = "cancelled"
    title = "Cancelled"

    def __init__(self, detail: str = "the client disconnected") -> None:
        super().__init__(detail)


class Internal(ServiceError):
    """An unexpected error. The log holds its cause under the same request id."""

    status = 500
    grpc_status = "INTERNAL"
    code = "internal"
    title = "Internal error"

    def __init__(self, request_id: str) -> None:
        super().__init__(f"internal error; request id {request_id}")


class NonFiniteResult(ServiceError):
    """The model computed numbers that are not finite, from frames that it should be able to use.

    Args:
        name: what the numbers are.
    """

    status = 500
    grpc_status = "INTERNAL"
    code = "non_finite_result"
    title = "Result is not finite"

    def __init__(self, name: str) -> None:
        super().__init__(f"the model computes {name} that are not finite; check its weights")


class ReloadFailed(ServiceError):
    """Models could not be loaded again. Their earlier versions go on; the other models are new.

    Args:
        models: what became of each model, as the fields of `ReloadedModel`.
    """

    status = 500
    grpc_status = "INTERNAL"
    code = "reload_failed"
    title = "Reload failed"

    def __init__(self, models: Sequence[Mapping[str, Any]]) -> None:
        failed = [model for model in models if model["result"] == "failed"]
        reasons = "; ".join(f"{model['model']}: {model['error']}" for model in failed[:3])
        super().__init__(f"{len(failed)} of {len(models)} models could not be loaded: {reasons}")
        self.models = list(models)

    def problem(self, request_id: str) -> dict[str, Any]:
        """See `ServiceError.problem`; with what became of each model."""
        return {**super().problem(request_id), "models": self.models}


class Loading(ServiceError):
    """The server is loading its models and warming them up."""

    status = 503
    grpc_status = "UNAVAILABLE"
    code = "loading"
    title = "Loading"

    def __init__(self, retry_after_s: float = 2.0) -> None:
        super().__init__("the server is loading its models", retry_after_s=retry_after_s)


class Draining(ServiceError):
    """The server is shutting down and takes no new requests."""

    status = 503
    grpc_status = "UNAVAILABLE"
    code = "draining"
    title = "Draining"

    def __init__(self, retry_after_s: float = 5.0) -> None:
        super().__init__("the server is shutting down", retry_after_s=retry_after_s)


class Restarting(ServiceError):
    """The engine has died and is being started again."""

    status = 503
    grpc_status = "UNAVAILABLE"
    code = "restarting"
    title = "Restarting"

    def __init__(self, retry_after_s: float = 2.0) -> None:
        super().__init__("the engine is being started again", retry_after_s=retry_after_s)


class Failed(ServiceError):
    """The engine has stopped for good. The process has to be restarted."""

    status = 503
    grpc_status = "UNAVAILABLE"
    code = "failed"
    title = "Failed"

    def __init__(self) -> None:
        super().__init__("the engine has stopped; the server must be restarted")


class DeadlineExceeded(ServiceError):
    """No plan could be made before the request's deadline."""

    status = 504
    grpc_status = "DEADLINE_EXCEEDED"
    code = "deadline_exceeded"
    title = "Deadline exceeded"


CODES = tuple(
    sorted(
        {
            *INVALID_REQUEST_CODES,
            *(kind.code for kind in ServiceError.__subclasses__() if hasattr(kind, "code")),
        }
    )
)


def retry_after_header(retry_after_s: float) -> str:
    """The value of `Retry-After`: whole seconds, at least one."""
    return str(max(1, math.ceil(retry_after_s)))
