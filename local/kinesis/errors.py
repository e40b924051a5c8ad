"""
The refusals of the local Kinesis: code, HTTP status and wording.

The codes are those of the service model of Kinesis (API version 2013-12-02) and, for what the front of every AWS
service refuses, those of the signature and token checks. In the JSON 1.1 protocol each refusal by the client's fault
is a 400, also those that other protocols answer with 403.
"""

INTERNAL_FAILURE = "InternalFailure"
THROTTLED = "ProvisionedThroughputExceededException"

# code -> HTTP status and what is said when the place of the error has nothing better to say.
CODES: dict[str, tuple[int, str]] = {
    "AccessDeniedException": (400, "User is not authorized to perform this operation on the resource."),
    "DryRunOperationException": (400, "The request would have succeeded, but the DryRun parameter was set."),
    "ExpiredIteratorException": (400, "The iterator has expired."),
    "ExpiredNextTokenException": (400, "The pagination token has expired."),
    "ExpiredTokenException": (400, "The security token included in the request is expired"),
    "IncompleteSignatureException": (400, "The signature is incomplete."),
    INTERNAL_FAILURE: (500, "Internal Service Failure"),
    "InvalidArgumentException": (400, "An argument is not valid."),
    "InvalidSignatureException": (
        400,
        "The request signature we calculated does not match the signature you provided.",
    ),
    "KMSAccessDeniedException": (400, "The key does not exist or you have no access to it."),
    "KMSDisabledException": (400, "The key is not enabled."),
    "KMSInvalidStateException": (400, "The state of the key is not valid for this request."),
    "KMSNotFoundException": (400, "The key cannot be found."),
    "KMSOptInRequired": (400, "The access key needs a subscription for the service."),
    "KMSThrottlingException": (400, "The request was denied due to request throttling by the key service."),
    "LimitExceededException": (400, "Rate exceeded."),
    "MissingAuthenticationTokenException": (400, "Missing Authentication Token"),
    THROTTLED: (400, "Rate exceeded."),
    "ResourceInUseException": (400, "The resource is in use."),
    "ResourceNotFoundException": (400, "The resource cannot be found."),
    "SerializationException": (400, "The body cannot be read."),
    "ServiceUnavailable": (503, "Service is unable to handle request."),
    "UnknownOperationException": (400, "The operation is not known."),
    "UnrecognizedClientException": (400, "The security token included in the request is invalid."),
    "ValidationException": (400, "A constraint is not satisfied."),
}


class KinesisError(Exception):
    """
    A whole request is refused.

    `code` is one of `CODES`, which also gives the message when none is passed.
    """

    def __init__(self, code: str, message: str | None = None) -> None:
        self.status, default = CODES[code]
        self.code = code
        self.message = message or default
        super().__init__(f"{code}: {self.message}")
