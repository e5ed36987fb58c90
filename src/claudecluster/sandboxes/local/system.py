"""What every isolated guest sees of the host's system: programs and libraries, a curated /etc, an invented user. Called by `process`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SYSTEM_FOLDERS = ("/usr", "/opt", "/nix/store", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
TEMPORARY = ("/tmp", "/var/tmp")  # noqa: S108 - the guest's own
FOLDERS = ("/dev", "/proc", "/run", "/home", "/var/lib", "/mnt", *TEMPORARY)

# what programs need to run at all; nothing that tells of users, hosts, mirrors, proxies or keys
_ETC = (
    "alternatives", "bash_completion.d", "ca-certificates", "ca-certificates.conf", "crypto-policies", "debian_version", "dpkg", "fonts",
    "fedora-release", "gai.conf", "host.conf", "inputrc", "java-8-openjdk", "java-11-openjdk", "java-17-openjdk", "java-21-openjdk", "ld.so.cache",
    "ld.so.conf", "ld.so.conf.d", "locale.alias", "locale.conf", "localtime", "magic", "magic.mime", "mime.types", "networks", "os-release", "perl",
    "pki/ca-trust", "pki/tls/certs", "protocols", "python3", "python3.10", "python3.11", "python3.12", "python3.13", "redhat-release", "rpc", "services",
    "ssl/cert.pem", "ssl/certs", "ssl/openssl.cnf", "terminfo", "timezone", "vim", "xml", "sgml",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Part:
    """A read-only piece of the host, the same for every sandbox."""

    source: Path
    at: str


def links() -> dict[str, str]:
    """Return the system folders that are symlinks, such as /bin to usr/bin."""
    return {folder: str(Path(folder).readlink()) for folder in SYSTEM_FOLDERS if Path(folder).is_symlink()}


def parts() -> Iterator[Part]:
    """Yield the system folders."""
    for folder in SYSTEM_FOLDERS:
        if Path(folder).is_dir() and not Path(folder).is_symlink():
            yield Part(Path(folder), folder)


def etc() -> dict[str, Any]:
    """Return what /etc is made of: names copied from the host, texts of our own, symlinks."""
    files = {
        "group": "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n",
        "hostname": "sandbox\n",
        "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nprotocols: files\nservices: files\n",
        "passwd": passwd("/home/agent"),
        "profile": "umask 022\n",  # a login shell keeps the PATH it is given
        "resolv.conf": "",
        "shells": "/bin/sh\n/bin/bash\n",
    }
    return {"copies": _ETC, "files": files, "links": {"mtab": "/proc/self/mounts"}}


def passwd(home: str) -> str:
    """Return the user list a guest sees."""
    users = (
        "root:x:0:0:root:/root:/bin/sh",
        f"agent:x:1000:1000:agent:{home}:/bin/bash",
        "nobody:x:65534:65534:nobody:/nonexistent:/bin/false",
    )
    return "\n".join(users) + "\n"
