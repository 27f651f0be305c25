"""The errors that Noctule shows to people and to container runtimes, in one hierarchy.

Each class has the CNI error code that a runtime receives (CNI specification 1.1.0, section
"Error"; codes from 100 on are our own). A message names the field and the fix.
"""

from __future__ import annotations

from typing import ClassVar


class NoctuleError(Exception):
    """Base of all expected failures: a sentence for people and a CNI error code."""

    code: ClassVar[int] = 999

    def __init__(self, message: str, *, details: str = "") -> None:
        """`message` names the field and the fix; `details` holds the cause, if any."""
        super().__init__(message)
        self.message = message
        self.details = details


class Unsupported(NoctuleError):
    """This release does not know a field that may not be ignored."""

    code = 2


class UnknownContainer(NoctuleError):
    """The container or its namespace does not exist."""

    code = 3


class IOFailure(NoctuleError):
    """A file, socket or stream could not be read or written."""

    code = 5


class DecodeFailure(NoctuleError):
    """Input is not the JSON, YAML or record that was expected."""

    code = 6


class InvalidConfig(NoctuleError):
    """A value in a configuration is wrong: the message names the field and the fix."""

    code = 7


class TryAgain(NoctuleError):
    """A transient condition: the same call may succeed later."""

    code = 11


class NotAvailable(NoctuleError):
    """STATUS: the plugin cannot serve ADD now."""

    code = 50


class LimitedConnectivity(NoctuleError):
    """STATUS: the plugin cannot serve ADD now, and running containers are affected too."""

    code = 51


class KernelFailure(NoctuleError):
    """The kernel refused a change; `details` holds errno and the operation."""

    code = 100


class AddressesExhausted(NoctuleError):
    """No address is free in this node's slice."""

    code = 101


class CheckFailure(NoctuleError):
    """CHECK: the attachment is not as ADD left it."""

    code = 102


class NodeFull(NoctuleError):
    """The node's bridge has no port left."""

    code = 103
