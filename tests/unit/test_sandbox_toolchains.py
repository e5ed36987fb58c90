"""What programs on a PATH need is shown; what else lies around them is not."""

from pathlib import Path

import pytest

from claudecluster.sandboxes.local import toolchains


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home" / "ada"
    for secret in (
        ".ssh/id",
        ".cargo/credentials.toml",
        ".config/gh/hosts.yml",
        ".npmrc",
        ".claude.json",
        ".local/share/keyrings/login",
        "bin/own",
    ):
        write(home / secret, "secret")
    return home


def write(path: Path, text: str = "", *, executable: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755 if executable else 0o644)
    return path


def program(path: Path, text: str = "\x7fELF") -> Path:
    return write(path, text, executable=True)


def link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def shown(path: list[Path], home: Path) -> set[str]:
    found = toolchains.find(":".join(map(str, path)), home)
    for secret in (".ssh/id", ".cargo/credentials.toml", ".config/gh/hosts.yml", ".npmrc", ".claude.json", ".local/share/keyrings/login"):
        assert not [part for part in found.parts if (home / secret).is_relative_to(part.source)], "a secret is shown"
    return {str(Path(part.at).relative_to(home)) for part in found.parts}


def test_a_folder_of_programs_is_shown_and_nothing_beside_it(home: Path) -> None:
    assert shown([home / "bin"], home) == {"bin"}


def test_a_home_is_never_shown_even_if_the_path_names_it(home: Path) -> None:
    for folder in (home, home.parent, home.parent.parent, Path("/")):
        program(folder / "tool") if folder == home else None
        assert toolchains.find(str(folder), home).parts == ()
        assert toolchains.find(str(folder), home).path == ()


def test_the_systems_folders_need_nothing(home: Path) -> None:
    found = toolchains.find("/usr/local/bin:/usr/bin:/usr/bin:relative::/no/such/folder", home)
    assert found.path == ("/usr/local/bin", "/usr/bin")
    assert not [part for part in found.parts if part.source.is_relative_to("/usr")]


def test_pyenv_is_shown_with_its_versions_and_without_its_history(home: Path) -> None:
    root = home / ".pyenv"
    program(root / "libexec/pyenv")
    link(root / "bin/pyenv", root / "libexec/pyenv")
    program(root / "shims/python", f'#!/usr/bin/env bash\nexec "{root}/libexec/pyenv" exec python "$@"\n')
    write(root / "versions/3.11.7/lib/python3.11/os.py")
    write(root / "version", "3.11.7\n")
    write(root / ".git/config")
    assert shown([root / "shims", root / "bin"], home) == {
        ".pyenv/bin",
        ".pyenv/libexec",
        ".pyenv/shims",
        ".pyenv/version",
        ".pyenv/versions",
    }
    assert toolchains.find(str(root / "shims"), home).env == {"PYENV_ROOT": str(root)}


def test_rustup_is_shown_without_credentials(home: Path) -> None:
    program(home / ".cargo/bin/rustup")
    link(home / ".cargo/bin/cargo", Path("rustup"))
    program(home / ".rustup/toolchains/stable/bin/cargo")
    write(home / ".rustup/settings.toml")
    write(home / ".rustup/downloads/x")
    assert shown([home / ".cargo/bin"], home) == {".cargo/bin", ".rustup/settings.toml", ".rustup/toolchains"}


def test_node_under_nvm_is_shown_whole(home: Path) -> None:
    top = home / ".nvm/versions/node/v20.1.0"
    program(top / "bin/node")
    program(top / "lib/node_modules/npm/bin/npm-cli.js")
    link(top / "bin/npm", Path("../lib/node_modules/npm/bin/npm-cli.js"))
    assert shown([top / "bin"], home) == {".nvm/versions/node/v20.1.0"}


def test_links_in_local_bin_bring_their_installation(home: Path) -> None:
    python = home / ".local/share/uv/python/cpython-3.12.1-linux"
    program(python / "bin/python3.12")
    write(python / "lib/python3.12/os.py")
    tool = home / ".local/share/uv/tools/ruff"
    write(tool / "pyvenv.cfg", f"home = {python}/bin\n")
    program(tool / "bin/ruff")
    link(home / ".local/bin/ruff", tool / "bin/ruff")
    link(home / ".local/bin/python3.12", python / "bin/python3.12")
    program(home / "downloads/single-binary")
    link(home / ".local/bin/single", home / "downloads/single-binary")
    assert shown([home / ".local/bin"], home) == {
        ".local/bin",
        ".local/share/uv/python/cpython-3.12.1-linux",
        ".local/share/uv/tools/ruff",
        "downloads/single-binary",
    }


def test_a_script_brings_its_interpreter(home: Path) -> None:
    venv, python = home / ".local/pipx/venvs/black", home / "sdk/python"
    write(python / "lib/python3.11/os.py")
    program(python / "bin/python3.11")
    write(venv / "pyvenv.cfg", f"home = {python}/bin\n")
    link(venv / "bin/python", python / "bin/python3.11")
    program(home / "bin/black", f"#!{venv}/bin/python\nimport black\n")
    assert shown([home / "bin"], home) == {"bin", ".local/pipx/venvs/black", "sdk/python"}


def test_an_environment_on_the_path_brings_the_python_it_was_made_from(home: Path) -> None:
    base = home / "python/cpython-3.11.7"
    write(base / "lib/python3.11/os.py")
    program(base / "bin/python3.11")
    link(home / "python/cpython-3.11", base)
    venv = home / "project/.venv"
    write(venv / "pyvenv.cfg", f"home = {home}/python/cpython-3.11/bin\n")
    link(venv / "bin/python", home / "python/cpython-3.11/bin/python3.11")
    assert shown([venv / "bin"], home) == {"project/.venv", "python/cpython-3.11", "python/cpython-3.11.7"}


@pytest.mark.parametrize("claimed", ["{home}", "{home}/.ssh", "/", "{home}/..", "relative", ""])
def test_a_workspace_cannot_claim_any_folder_as_its_python(home: Path, claimed: str) -> None:
    venv = home / "project/.venv"
    write(venv / "pyvenv.cfg", f"home = {claimed.format(home=home)}/bin\n")
    assert toolchains.interpreter_of(venv, home) == ()


def test_what_is_given_by_name_is_shown(home: Path) -> None:
    found = toolchains.find("/usr/bin", home, (home / "bin",))
    assert [(part.source, part.at) for part in found.parts] == [(home / "bin", str(home / "bin"))]
