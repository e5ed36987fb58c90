"""Who signs what a landing proves, and checks it again later."""

from typing import Protocol

from claudecluster.model.receipt import Receipt
from claudecluster.ports.workspace import Hub


class Notary(Protocol):
    """Issues receipts under one key. Works offline."""

    @property
    def public_key(self) -> str:
        """The key as one line of OpenSSH."""
        ...

    async def issue(self, receipt: Receipt) -> str:
        """Return the signed JSON text."""
        ...

    async def problems(self, text: str, hub: Hub) -> list[str]:
        """Return what is wrong with a receipt, a sentence each: nothing if it holds. Never raises for a bad one."""
        ...
