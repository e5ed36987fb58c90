"""Our SSH key: made on first use, signs commits and receipts, verifies them without a network or ssh-keygen.

Called by the commit writer and the notary. The format is OpenSSH's PROTOCOL.sshsig, so `git verify-commit` and
`ssh-keygen -Y verify` accept what is made here. It does not decide whose key may be trusted.
"""

import base64
import binascii
import hashlib
import os
import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

from claudecluster.model.errors import Refused, Unavailable

MAGIC = b"SSHSIG"
HASH = b"sha512"
BEGIN, END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"
WIDTH = 70  # ssh-keygen's line length


@dataclass(frozen=True)
class Signer:
    """One Ed25519 key and the name it signs commits under."""

    key: Ed25519PrivateKey
    name: str = "ClaudeCluster"
    email: str = "claudecluster@localhost"

    @property
    def public_key(self) -> str:
        """The public key as one line of OpenSSH: `ssh-ed25519 AAAA...`."""
        return self.key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()

    @property
    def fingerprint(self) -> str:
        """The key's fingerprint as ssh-keygen prints it: `SHA256:...`."""
        return fingerprint(self.public_key)

    @property
    def allowed_signer(self) -> str:
        """A line for git's `gpg.ssh.allowedSignersFile`."""
        return f'{self.email} namespaces="git" {self.public_key}\n'

    def sign(self, data: bytes, namespace: str) -> str:
        """Return an armored signature. The same data gives the same signature."""
        public = _wire(self.public_key)
        signature = _string(b"ssh-ed25519") + _string(self.key.sign(_signed(data, namespace)))
        blob = MAGIC + struct.pack(">I", 1) + b"".join(map(_string, (public, namespace.encode(), b"", HASH, signature)))
        text = base64.b64encode(blob).decode()
        lines = [text[start : start + WIDTH] for start in range(0, len(text), WIDTH)]
        return "\n".join((BEGIN, *lines, END)) + "\n"


def load(folder: Path, *, name: str = "ClaudeCluster", email: str = "claudecluster@localhost") -> Signer:
    """Return the signer whose key lies in `folder` (`signing_key`, mode 0600), making the key on first use. Raises Refused, Unavailable."""
    path = folder / "signing_key"
    try:
        if not path.exists():
            _make(path)
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise Unavailable(f"cannot use the signing key {path}: {error}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Refused(f"{path} is not an OpenSSH private key: {error}", hint="move it away; a new one is made") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise Refused(f"{path} is not an Ed25519 key", hint="move it away; a new one is made")
    return Signer(key, name, email)


def _make(path: Path) -> None:
    """Two processes may come here at once: the first link wins, so both use the same key."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        file.flush()
        os.fsync(file.fileno())
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        pass
    finally:
        draft.unlink(missing_ok=True)


def fingerprint(public_key: str) -> str:
    """Return `SHA256:...` of an OpenSSH public key line. Raises Refused if it is none."""
    digest = hashlib.sha256(_wire(public_key)).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def verify(data: bytes, signature: str, public_key: str, namespace: str) -> bool:
    """Tell whether `signature` (armored) is that key's over `data` for that namespace. Anything malformed is just not valid."""
    try:
        key = load_ssh_public_key(public_key.encode())
        lines = signature.strip().splitlines()
        if lines[0] != BEGIN or lines[-1] != END or not isinstance(key, Ed25519PublicKey):
            return False
        text = "".join(lines[1:-1]).encode()
        blob = base64.b64decode(text, validate=True)
        if blob[:10] != MAGIC + struct.pack(">I", 1) or base64.b64encode(blob) != text:  # the last letter has bits that say nothing
            return False
        public, space, _, algorithm, sealed = _strings(blob[10:])
        kind, raw = _strings(sealed)
        if (public, space, algorithm, kind) != (_wire(public_key), namespace.encode(), HASH, b"ssh-ed25519"):
            return False
        key.verify(raw, _signed(data, namespace))
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, IndexError, struct.error, Refused):
        return False
    return True


def _signed(data: bytes, namespace: str) -> bytes:
    return MAGIC + b"".join(map(_string, (namespace.encode(), b"", HASH, hashlib.sha512(data).digest())))


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _strings(blob: bytes) -> Iterator[bytes]:
    place = 0
    while place < len(blob):
        (size,) = struct.unpack_from(">I", blob, place)
        place += 4 + size
        if place > len(blob):
            raise ValueError("cut short")
        yield blob[place - size : place]


def _wire(public_key: str) -> bytes:
    try:
        return base64.b64decode(public_key.split()[1], validate=True)
    except (IndexError, binascii.Error) as error:
        raise Refused("not an OpenSSH public key", hint="it looks like: ssh-ed25519 AAAA...") from error
