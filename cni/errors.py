"""The error that a runtime reads on stdout, and the codes it may carry.

CNI specification 1.1.0, section 5 "Error".

1. A message names the field and the fix; details hold the cause.
2. Codes below 100 are the specification's, those from 100 to 999 are ours.
3. Every failure that this package raises is a `Failure`. ``netconf``'s hierarchy is translated
   in the one module that imports it, `cni.fallback`.
"""

from __future__ import annotations

from cni.codec import encode, matched

# Section 5, "Error"; the names are those of pkg/types in containernetworking/cni.
INCOMPATIBLE_VERSION = 1
UNSUPPORTED_FIELD = 2
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
DECODING_FAILURE = 6
INVALID_CONFIG = 7
INVALID_NETNS = 8
TRY_AGAIN_LATER = 11
NOT_AVAILABLE = 50
CHECK_FAILED = 102
INTERNAL = 999


class Failure(Exception):
    """The one error of this package: what becomes the error on stdout.

    Its code is a value, not a class, because most failures are relayed from the daemon;
    ``netconf``'s hierarchy is translated at the one place that imports it, `cni.fallback`.
    """

    def __init__(self, code: int, message: str, details: str = "") -> None:
        """`message` names the field and the fix; `details` holds the cause, if any."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details

    def shape(self, version: str) -> dict[str, object]:
        """Return the error as JSON values, for a configuration of `version`."""
        return {
            "cniVersion": version,
            "code": self.code,
            "msg": self.message,
            "details": self.details,
        }


def relayed(value: object) -> Failure | None:
    """Return the error that somebody else's JSON `value` is, or None if it cannot be passed on.

    A code of 0 or less would read as success to some runtime, and Go's library takes no
    ``true``. Details that are no text are shown as the JSON they are.
    """
    if not isinstance(value, dict):
        return None
    given = matched(value, ("code", "msg", "details"))
    code, message, details = given.get("code"), given.get("msg"), given.get("details", "")
    if type(code) is not int or not 0 < code < 1 << 31:
        return None
    if not isinstance(message, str) or not message:
        return None
    return Failure(code, message, details if isinstance(details, str) else encode(details))
