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
    """The one exception of this package; `cni.main` writes it to stdout as the CNI error.

    Its code is a value and not a class of its own, because most failures are relayed from the
    daemon, which sends a code (rule 3 for those of ``netconf``).
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
    """Return the error in JSON `value`, which the daemon or a delegated plugin wrote.

    None if it cannot be passed on as a CNI error: some runtimes would read a code of 0 or less
    as success, and Go's library refuses a code that is ``true``. Details that are not a string
    are passed on as JSON text.
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
