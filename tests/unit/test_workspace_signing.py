"""The signing key and its signatures, checked by OpenSSH where it is at hand."""

import shutil
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from claudecluster.model.errors import Refused
from claudecluster.workspaces import signing

DATA = b"some bytes\n"


def test_the_key_is_made_once_and_only_we_may_read_it(tmp_path: Path) -> None:
    first = signing.load(tmp_path / "keys")
    again = signing.load(tmp_path / "keys")
    assert first.public_key == again.public_key
    assert stat.S_IMODE((tmp_path / "keys/signing_key").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["signing_key"]


def test_all_who_make_the_key_at_once_use_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = {signer.public_key for signer in pool.map(lambda _: signing.load(tmp_path), range(16))}
    assert len(keys) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["signing_key"]


def test_a_file_that_is_no_key_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "signing_key").write_text("not a key\n")
    with pytest.raises(Refused):
        signing.load(tmp_path)
    assert (tmp_path / "signing_key").read_text() == "not a key\n"


def test_a_signature_holds_for_its_data_its_key_and_its_namespace_only(tmp_path: Path) -> None:
    signer, other = signing.load(tmp_path / "a"), signing.load(tmp_path / "b")
    signature = signer.sign(DATA, "git")
    assert signature == signer.sign(DATA, "git")
    assert signing.verify(DATA, signature, signer.public_key, "git")
    assert not signing.verify(DATA + b"x", signature, signer.public_key, "git")
    assert not signing.verify(DATA, signature, signer.public_key, "file")
    assert not signing.verify(DATA, signature, other.public_key, "git")
    assert not signing.verify(DATA, signature, "ssh-ed25519 nonsense", "git")


@pytest.mark.parametrize("number", range(16))
def test_no_changed_or_cut_signature_holds_or_raises(tmp_path: Path, number: int) -> None:
    signer = signing.load(tmp_path / str(number))  # in each signature the last letters differ
    signature = signer.sign(DATA, "git")
    for place in range(len(signature)):
        if signature[place] in "\n-" or signature[place : place + 1].isspace():
            continue
        changed = signature[:place] + ("A" if signature[place] != "A" else "B") + signature[place + 1 :]
        assert not signing.verify(DATA, changed, signer.public_key, "git"), place
    for end in range(0, len(signature) - 2, 7):
        assert not signing.verify(DATA, signature[:end], signer.public_key, "git")


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed, which is the judge here")
def test_openssh_reads_our_key_and_accepts_our_signatures(tmp_path: Path) -> None:
    signer = signing.load(tmp_path)
    listed = subprocess.run(["ssh-keygen", "-lf", str(tmp_path / "signing_key")], capture_output=True, text=True, check=True)
    assert signer.fingerprint in listed.stdout
    (tmp_path / "allowed").write_text(signer.allowed_signer)
    (tmp_path / "signature").write_text(signer.sign(DATA, "git"))
    verify = [
        "ssh-keygen",
        "-Y",
        "verify",
        "-f",
        str(tmp_path / "allowed"),
        "-I",
        signer.email,
        "-n",
        "git",
        "-s",
        str(tmp_path / "signature"),
    ]
    assert subprocess.run(verify, input=DATA, capture_output=True, check=False).returncode == 0
    assert subprocess.run(verify, input=b"other", capture_output=True, check=False).returncode != 0
    (tmp_path / "data").write_bytes(DATA)
    subprocess.run(
        ["ssh-keygen", "-Y", "sign", "-f", str(tmp_path / "signing_key"), "-n", "git", str(tmp_path / "data")],
        check=True,
        capture_output=True,
    )
    assert signing.verify(DATA, (tmp_path / "data.sig").read_text(), signer.public_key, "git")
