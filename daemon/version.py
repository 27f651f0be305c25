"""The one place that says which release this is; packaging and the Makefile read it from here."""

from __future__ import annotations

VERSION = "0.2.0"
