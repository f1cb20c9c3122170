"""Every way to fail, one class and one reason each: the same reason on the wire, in Python, in the CLI and in logs.

    LlavaGrpcError
    ├── InvalidRequestError            the caller's fault: trying the same again gives the same answer
    │   ├── ImageInvalidError          not a picture, or cut short
    │   ├── ImageTooLargeError         more pixels than allowed
    │   ├── ImageUriDisabledError      pictures by address are off
    │   ├── ImageCountError            pictures and placeholders differ in number, or too many pictures
    │   ├── ImagesNotSupportedError    a picture for a model that sees none
    │   ├── PromptInvalidError         no turns, unknown role, no text
    │   ├── PromptTooLongError         prompt and answer do not fit the context
    │   ├── SamplingInvalidError       an option outside its range
    │   ├── RequestIdInvalidError      too long, or not printable
    │   ├── ModelRequiredError         several models are served and none was named
    │   ├── MessageTooLargeError       beyond the message limit of either side
    │   └── RegistrationInvalidError   speed, slots, models or address of a worker make no sense
    ├── NotFoundError
    │   ├── ModelNotFoundError         nobody serves a model of that name
    │   ├── WorkerNotFoundError        no worker of that address is on the register
    │   └── ImageNotFoundError         a picture by digest that is not held
    ├── OverloadedError                try again in a while
    │   ├── AllSlotsTakenError         every slot that could serve the request is taken
    │   └── QueueFullError             and as many wait as may, or it has waited as long as one may
    ├── UnavailableError               nobody's fault: try again
    │   ├── NoLiveWorkerError          the model is known, but no worker that serves it is well
    │   ├── AllSpeedsZeroError         every worker of the model advertises speed 0
    │   ├── WorkerLostError            the worker died while answering
    │   ├── ResumeFailedError          it died in the middle of the answer, and nobody could go on with it
    │   ├── ServerUnreachableError     no answer at the address (made by the client)
    │   ├── StartingError              the worker is loading its model
    │   └── ShuttingDownError          the server is stopping
    ├── MembershipError                a worker may not join
    │   ├── JoinRefusedError           join token missing or wrong
    │   ├── WorkerUnreachableError     nobody answers at the address that the worker advertises
    │   ├── AddressTakenError          another worker answers there
    │   ├── ControllerLoopError        the controller stands behind itself
    │   └── ProtocolVersionError       the contract's version is not spoken here
    ├── DeadlineExceededError          the client's deadline passed
    ├── RequestCancelledError          the call was cancelled
    └── EngineFailedError              the server's fault: a defect or an exhausted device

Laws: each class has its own `reason`; a message names the cause, `remedy` what to do about it; `rpc/status.py` maps
every reason to one gRPC code and back, and a test fails when one is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class LlavaGrpcError(Exception):
    """The root. `str(error)` is the cause followed by the remedy.

    Attributes:
        reason: one word for one cause, e.g. ``IMAGE_INVALID``.
        cause: what is wrong, for people.
        remedy: what to do about it, for people.
        retryable: whether the same request may succeed later or elsewhere.
        retry_after: seconds after which trying again makes sense, or None.
        metadata: further facts, string to string.
    """

    reason: ClassVar[str] = "UNKNOWN"
    retryable: ClassVar[bool] = False
    default_remedy: ClassVar[str] = ""

    def __init__(
        self,
        cause: str,
        *,
        remedy: str | None = None,
        retry_after: float | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        self.cause = cause
        self.remedy = self.default_remedy if remedy is None else remedy
        self.retry_after = retry_after
        self.metadata = dict(metadata or {})
        super().__init__(cause if not self.remedy else f"{cause}. {self.remedy}")

    @classmethod
    def leaves(cls) -> Iterator[type[LlavaGrpcError]]:
        """Every class of the tree that is raised, that is, without subclasses."""
        children = cls.__subclasses__()
        if not children:
            yield cls
        for child in children:
            yield from child.leaves()


class InvalidRequestError(LlavaGrpcError):
    """The caller's fault: trying the same again gives the same answer."""

    reason = "INVALID_REQUEST"


class ImageInvalidError(InvalidRequestError):
    """Not a picture, or cut short."""

    reason = "IMAGE_INVALID"
    default_remedy = "Send a whole PNG, JPEG, WebP, GIF, BMP or TIFF file"


class ImageTooLargeError(InvalidRequestError):
    """More pixels than allowed; found in the header, before anything is decoded."""

    reason = "IMAGE_TOO_LARGE"
    default_remedy = "Scale the picture down; the model sees it at a few hundred pixels a side"


class ImageUriDisabledError(InvalidRequestError):
    """Pictures by address are off."""

    reason = "IMAGE_URI_DISABLED"
    default_remedy = "Send the picture's bytes"


class ImageCountError(InvalidRequestError):
    """Pictures and placeholders differ in number, or there are too many pictures."""

    reason = "IMAGE_COUNT_MISMATCH"
    default_remedy = "Give one picture for each <image> of a raw prompt; a conversation needs no placeholders"


class ImagesNotSupportedError(InvalidRequestError):
    """A picture for a model that sees none."""

    reason = "IMAGES_NOT_SUPPORTED"
    default_remedy = "Ask a model that sees pictures (ListModels says which)"


class PromptInvalidError(InvalidRequestError):
    """No turns, an unknown role, no text."""

    reason = "PROMPT_INVALID"
    default_remedy = "Send at least one turn; the last one is the user's"


class PromptTooLongError(InvalidRequestError):
    """Prompt and answer do not fit the model's context."""

    reason = "PROMPT_TOO_LONG"
    default_remedy = "Shorten the prompt, send fewer pictures, or lower max_new_tokens"


class SamplingInvalidError(InvalidRequestError):
    """A sampling option outside its range."""

    reason = "SAMPLING_INVALID"


class RequestIdInvalidError(InvalidRequestError):
    """Too long, or not printable."""

    reason = "REQUEST_ID_INVALID"
    default_remedy = "Use at most 128 printable characters without spaces, or leave it empty"


class ModelRequiredError(InvalidRequestError):
    """Several models are served and none was named."""

    reason = "MODEL_REQUIRED"
    default_remedy = "Name one of them"


class MessageTooLargeError(InvalidRequestError):
    """A message beyond the limit of the sender or of the receiver."""

    reason = "MESSAGE_TOO_LARGE"
    default_remedy = "Send smaller pictures, or raise --max-message-mb on every node and in the client"


class RegistrationInvalidError(InvalidRequestError):
    """Speed, slots, models or address of a worker make no sense."""

    reason = "REGISTRATION_INVALID"


class NotFoundError(LlavaGrpcError):
    """What was named is not there."""

    reason = "NOT_FOUND"


class ModelNotFoundError(NotFoundError):
    """Nobody serves a model of that name."""

    reason = "MODEL_NOT_FOUND"
    default_remedy = "`llava-grpc models` lists what is served"


class WorkerNotFoundError(NotFoundError):
    """No worker of that address is on the register: it never was, or it has left."""

    reason = "WORKER_NOT_FOUND"
    default_remedy = "`llava-grpc workers` lists those that are there"


class ImageNotFoundError(NotFoundError):
    """A picture by digest that the worker does not hold."""

    reason = "IMAGE_NOT_FOUND"
    default_remedy = "Send the picture's bytes"


class OverloadedError(LlavaGrpcError):
    """Try again in a while."""

    reason = "OVERLOADED"
    retryable = True


class AllSlotsTakenError(OverloadedError):
    """Every slot that could serve the request is taken."""

    reason = "ALL_SLOTS_TAKEN"
    default_remedy = "Try again shortly, or add workers"


class QueueFullError(OverloadedError):
    """Every slot is taken, and as many requests wait as may, or this one has waited as long as one may."""

    reason = "QUEUE_FULL"
    default_remedy = "Try again later, or add workers"


class UnavailableError(LlavaGrpcError):
    """Nobody's fault: try again."""

    reason = "UNAVAILABLE"
    retryable = True


class NoLiveWorkerError(UnavailableError):
    """The model is known, or no name was given, but no worker is there that is well."""

    reason = "NO_LIVE_WORKER"
    default_remedy = "Start a worker, or wait for one to come back (`llava-grpc workers` shows the fleet)"


class AllSpeedsZeroError(UnavailableError):
    """Every worker of the model advertises speed 0: nothing to draw lots by."""

    reason = "ALL_SPEEDS_ZERO"
    default_remedy = "Start at least one worker with --speed above 0"


class WorkerLostError(UnavailableError):
    """The worker died while answering."""

    reason = "WORKER_LOST"
    default_remedy = "Send the request again"


class ResumeFailedError(UnavailableError):
    """The worker died in the middle of the answer, and nobody could go on with it. Metadata: `delivered_tokens`."""

    reason = "RESUME_FAILED"
    default_remedy = "Send the request again, with the tokens that came as emitted_token_ids to go on after them"


class ServerUnreachableError(UnavailableError):
    """No answer at the address. Made by the client, never sent."""

    reason = "SERVER_UNREACHABLE"
    default_remedy = "Check the address and that a controller runs there (`llava-grpc up` starts one)"


class StartingError(UnavailableError):
    """The worker is loading its model."""

    reason = "STARTING"
    default_remedy = "Try again shortly; health says SERVING once it is ready"


class ShuttingDownError(UnavailableError):
    """The server is stopping."""

    reason = "SHUTTING_DOWN"
    default_remedy = "Send the request again; it goes elsewhere"


class MembershipError(LlavaGrpcError):
    """A worker may not join."""

    reason = "MEMBERSHIP"


class JoinRefusedError(MembershipError):
    """Join token missing or wrong."""

    reason = "JOIN_REFUSED"
    default_remedy = "Start the worker with the controller's --join-token (or LLAVA_GRPC_JOIN_TOKEN)"


class WorkerUnreachableError(MembershipError):
    """Nobody answers at the address that the worker advertises. It may be starting still: worth another try."""

    reason = "WORKER_UNREACHABLE"
    retryable = True
    default_remedy = "Start the worker with --worker-address HOST:PORT as the controller can reach it"


class AddressTakenError(MembershipError):
    """Another worker answers at the address that the worker advertises."""

    reason = "ADDRESS_TAKEN"
    default_remedy = "Give each worker an address of its own (--worker-address)"


class ControllerLoopError(MembershipError):
    """The controller that registers has this one behind it, or is it: requests would go round in circles."""

    reason = "CONTROLLER_LOOP"
    default_remedy = "Give each controller only such a --parent as does not itself, by whatever way, register with it"


class ProtocolVersionError(MembershipError):
    """The contract's version that the worker speaks is not spoken here."""

    reason = "PROTOCOL_VERSION"
    default_remedy = "Upgrade the older side"


class DeadlineExceededError(LlavaGrpcError):
    """The client's deadline passed."""

    reason = "DEADLINE_EXCEEDED"
    default_remedy = "Allow more time, or ask for fewer tokens"


class RequestCancelledError(LlavaGrpcError):
    """The call was cancelled."""

    reason = "CANCELLED"


class EngineFailedError(LlavaGrpcError):
    """The server's fault: a defect or an exhausted device."""

    reason = "ENGINE_FAILED"
    default_remedy = "The worker's log has the trace under this request id"
