"""Remote interpreters keep the contract of all interpreters, whatever carries them."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from rlm_dspy.interpreters import remote
from tests.interpreter_contract import ExecutionContract
from tests.interpreters.places import jailed, needs_bwrap, needs_nsjail, needs_sshd, sandboxed, through_ssh

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is of Linux")


class TestOtherProcess(ExecutionContract):
    """Another process of this machine, with no case of its own."""

    make = remote.argv()


@pytest.mark.long
@needs_sshd
class TestSsh(ExecutionContract):
    """This machine through ssh, with no case of its own."""

    @staticmethod
    def make(**options: Any) -> Any:
        """Connect at the first use."""
        return through_ssh()(**options)


@pytest.mark.long
@needs_bwrap
class TestBubblewrap(ExecutionContract):
    """A sandbox of bubblewrap, with no case of its own."""

    @staticmethod
    def make(**options: Any) -> Any:
        """Start it at the first use."""
        return sandboxed()(**options)


@pytest.mark.long
@needs_nsjail
class TestNsjail(ExecutionContract):
    """A sandbox of nsjail, where it is installed: Debian does not package it."""

    @staticmethod
    def make(**options: Any) -> Any:
        """Start it at the first use."""
        return jailed()(**options)
