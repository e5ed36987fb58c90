"""What every `SandboxProvider` and its sandboxes must do.

Four lines make a suite of it:

    class TestMine(SandboxContract):
        @pytest.fixture
        async def ground(self, tmp_path): yield Ground(provider, partial(local_spec, provider, tmp_path))

`ground.spec(name)` describes a sandbox with an empty writable work folder and home; each name has folders of its own. `/bin/sh` and the usual small programs must be
there. Needs pytest-asyncio in auto mode.
"""

import asyncio
import contextlib
import os
from dataclasses import replace

from claudecluster.model.errors import NotFound, Refused, SandboxLost, Unavailable
from claudecluster.model.place import Bind, Command, Exit
from claudecluster.testing.contracts.ground import HEART, NAME, PATIENCE, Done, Ground, collected, lively, raises, run, still


class CommandContract:
    """What `Sandbox.start` promises."""

    async def test_both_outputs_are_heard(self, ground: Ground) -> None:
        """Each line from its own stream, the last one also without a newline."""
        done = await run(await ground.make(), "sh", "-c", "echo one; echo two >&2; echo; printf three")
        assert (done.out, done.err) == ([b"one", b"", b"three"], [b"two"])
        assert done.exit == Exit(0)

    async def test_a_line_of_any_length_arrives_whole(self, ground: Ground) -> None:
        """Tools print what they like."""
        done = await run(await ground.make(), "sh", "-c", "head -c 8000000 /dev/zero | tr '\\0' x; echo; echo end")
        assert [len(line) for line in done.out] == [8_000_000, 3]

    async def test_what_is_sent_can_be_read_there(self, ground: Ground) -> None:
        """Also more than a pipe holds, until end of file."""
        place = await ground.make()
        async with asyncio.timeout(PATIENCE), place.start(Command(("cat",), stdin=True)) as process:
            reading = asyncio.ensure_future(collected(process))
            for _ in range(20):
                await process.send(b"y" * 99_999 + b"\n")
            await process.close_stdin()
            done = await reading
        assert (done.exit, {len(line) for line in done.out}, len(done.out)) == (Exit(0), {99_999}, 20)

    async def test_a_conversation_goes_back_and_forth(self, ground: Ground) -> None:
        """Nothing waits for a buffer to fill."""
        place = await ground.make()
        async with asyncio.timeout(PATIENCE), place.start(Command(("cat",), stdin=True)) as process:
            lines = process.lines()
            for word in (b"one", b"two", b"three"):
                await process.send(word + b"\n")
                assert (await anext(lines)).data == word

    async def test_without_stdin_it_reads_end_of_file(self, ground: Ground) -> None:
        """So that no tool waits for a person."""
        assert await run(await ground.make(), "cat") == Done(Exit(0), [], [])

    async def test_sending_to_one_that_does_not_listen_is_no_error(self, ground: Ground) -> None:
        """The exit tells."""
        place = await ground.make()
        async with asyncio.timeout(PATIENCE), place.start(Command(("true",), stdin=True)) as process:
            await process.send(b"x" * 1_000_000)
            assert await process.wait() == Exit(0)
            await process.send(b"more")
            await process.close_stdin()

    async def test_one_that_never_reads_its_stdin_can_still_be_heard_and_stopped(self, ground: Ground) -> None:
        """A blocked send does not block the rest."""
        place = await ground.make()
        async with asyncio.timeout(PATIENCE), place.start(Command(("sh", "-c", "echo here; sleep 600"), stdin=True)) as process:
            sending = asyncio.ensure_future(process.send(b"x" * 1_000_000))
            assert (await anext(process.lines())).data == b"here"
        await sending

    async def test_a_failing_command_is_an_exit_not_an_error(self, ground: Ground) -> None:
        """Its code is a shell's."""
        place = await ground.make()
        assert (await run(place, "sh", "-c", "exit 3")).exit == Exit(3)
        assert (await run(place, "sh", "-c", "kill -TERM $$")).exit == Exit(143)
        assert (await run(place, "sh", "-c", "kill -KILL $$")).exit == Exit(137)

    async def test_a_missing_program_is_exit_127(self, ground: Ground) -> None:
        """As in a shell, whether named or by path; one that may not be run is 126."""
        place = await ground.make()
        assert (await run(place, "no-such-program", "x")).exit == Exit(127)
        assert (await run(place, "./no-such-program")).exit == Exit(127)
        await place.write("plain.txt", b"text")
        assert (await run(place, "./plain.txt")).exit == Exit(126)

    async def test_it_starts_in_the_work_folder_or_below(self, ground: Ground) -> None:
        """`cwd` is relative to it."""
        place = await ground.make()
        await place.write("sub/dir/x", b"")
        assert (await run(place, "pwd")).out == [place.work.encode()]
        assert (await run(place, "pwd", cwd="sub/dir")).out == [f"{place.work}/sub/dir".encode()]

    async def test_a_working_folder_outside_is_refused(self, ground: Ground) -> None:
        """Nothing is started."""
        place = await ground.make()
        for cwd in ("..", "../../etc", "/etc", "sub/../../.."):
            await raises(Refused, run(place, "true", cwd=cwd))

    async def test_its_environment_is_what_was_asked_for(self, ground: Ground) -> None:
        """The sandbox's, under the command's; arguments arrive as they are."""
        spec = replace(ground.spec(NAME), env={"A": "1", "B": "1"})
        place = await ground.provider.create(spec)
        script = 'echo "$A $B $C"; [ -d "$HOME" ] && echo home; for a in "$@"; do echo "<$a>"; done'
        nasty = ("a b", "", "$(id)", "--", "ü\n*", "-n")
        done = await run(place, "sh", "-c", script, "sh", *nasty, env={"B": "2", "C": "x y"})
        assert b"\n".join(done.out).decode() == "1 2 x y\nhome\n" + "\n".join(f"<{text}>" for text in nasty)

    async def test_our_own_environment_does_not_leak_in(self, ground: Ground) -> None:
        """What is not given is not there."""
        os.environ["CONTRACT_LEAK"] = "leaked"  # noqa: TID251 - the leak to look for
        try:
            done = await run(await ground.make(), "env")
        finally:
            del os.environ["CONTRACT_LEAK"]  # noqa: TID251 - the same
        assert not [line for line in done.out if b"leaked" in line]

    async def test_the_timeout_stops_the_whole_tree(self, ground: Ground) -> None:
        """And the exit says so."""
        place = await ground.make()
        done = await run(place, "sh", "-c", f"{HEART} echo up; sleep 600", timeout=1.0)
        assert done.exit.timed_out
        await still(place)

    async def test_leaving_the_context_kills_everything_it_started(self, ground: Ground) -> None:
        """Also what started its own session and lost its parents."""
        place = await ground.make()
        async with asyncio.timeout(PATIENCE), place.start(Command(("sh", "-c", f"{HEART} sleep 600"))):
            await lively(place)
        await still(place)

    async def test_nothing_outlives_its_main_process(self, ground: Ground) -> None:
        """A task that has ended leaves no server behind."""
        place = await ground.make()
        done = await run(place, "sh", "-c", f"{HEART} while ! [ -s beat ]; do sleep 0.01; done")
        assert done.exit == Exit(0)
        await still(place)

    async def test_being_cancelled_kills_everything_it_started(self, ground: Ground) -> None:
        """At whatever point that is."""
        place = await ground.make()
        for patience in (0.0, 0.003, 0.01, 0.03):
            starting = asyncio.ensure_future(run(place, "sh", "-c", f"{HEART} sleep 600"))
            await asyncio.wait({starting}, timeout=patience)
            starting.cancel()
            await asyncio.wait({starting}, timeout=PATIENCE)
            assert starting.cancelled()
        working = asyncio.ensure_future(run(place, "sh", "-c", f"{HEART} sleep 600"))
        await lively(place)
        working.cancel()
        await asyncio.wait({working}, timeout=PATIENCE)
        await still(place)

    async def test_output_nobody_reads_does_not_keep_it_from_ending(self, ground: Ground) -> None:
        """Waiting is enough; what was said last can still be read."""
        place = await ground.make()
        async with asyncio.timeout(PATIENCE), place.start(Command(("sh", "-c", "yes | head -c 30000000; echo last"))) as process:
            assert await process.wait() == Exit(0)
            assert [line.data async for line in process.lines()][-1] == b"last"

    async def test_one_may_stop_listening_early(self, ground: Ground) -> None:
        """An endless writer is stopped like any other."""
        place = await ground.make()
        async with asyncio.timeout(PATIENCE), place.start(Command(("yes",))) as process:
            assert (await anext(process.lines())).data == b"y"

    async def test_commands_that_make_no_sense_are_refused(self, ground: Ground) -> None:
        """Before anything is started."""
        place = await ground.make()
        for command in (Command(()), Command(("",)), Command(("echo", "a\0b")), Command(("echo",), env={"A=B": "x"})):
            await raises(Refused, run(place, *command.argv, env=command.env))

    async def test_several_commands_may_run_at_once(self, ground: Ground) -> None:
        """They see the same files, and the end of one is not the end of another."""
        place = await ground.make()
        async with asyncio.timeout(PATIENCE), place.start(Command(("sh", "-c", "echo up; cat; cat made"), stdin=True)) as process:
            lines = process.lines()
            assert (await anext(lines)).data == b"up"
            assert (await run(place, "sh", "-c", "echo by another > made")).exit == Exit(0)
            await process.close_stdin()
            assert [line.data async for line in lines] == [b"by another"]


class FileContract:
    """What `Sandbox.read` and `Sandbox.write` promise."""

    async def test_what_is_written_is_read_and_seen(self, ground: Ground) -> None:
        """With its folders, byte for byte, and again."""
        place = await ground.make()
        data = bytes(range(256)) * 20_000
        await place.write("a/b/c.bin", data)
        assert await place.read("a/b/c.bin") == data
        assert (await run(place, "wc", "-c", "a/b/c.bin")).out[0].split()[0] == str(len(data)).encode()
        await place.write("a/b/c.bin", b"")
        assert await place.read("a/../a/b/c.bin") == b""

    async def test_a_command_can_change_what_was_written(self, ground: Ground) -> None:
        """Files belong to who works there, and stay when a command has ended."""
        place = await ground.make()
        await place.write("d/x", b"1\n")
        assert (await run(place, "sh", "-c", "echo 2 >> d/x && mkdir d/e && mv d/x d/e/x && chmod +x d/e/x")).exit == Exit(0)
        assert await place.read("d/e/x") == b"1\n2\n"
        await place.write("d/e/x", b"#!/bin/sh\necho ran\n")
        assert (await run(place, "d/e/x")).out == [b"ran"]

    async def test_files_can_be_read_and_written_while_a_command_runs(self, ground: Ground) -> None:
        """Each side sees what the other did."""
        place = await ground.make()
        script = "echo from inside > mine; echo ready; while ! [ -e yours ]; do sleep 0.01; done; cat yours"
        async with asyncio.timeout(PATIENCE), place.start(Command(("sh", "-c", script))) as process:
            lines = process.lines()
            assert (await anext(lines)).data == b"ready"
            assert await place.read("mine") == b"from inside\n"
            await place.write("yours", b"from outside\n")
            assert [line.data async for line in lines] == [b"from outside"]

    async def test_a_file_that_is_not_there_is_not_found(self, ground: Ground) -> None:
        """Nor one below a file."""
        place = await ground.make()
        await place.write("file", b"x")
        for path in ("none", "none/deeper", "file/below"):
            await raises(NotFound, place.read(path))

    async def test_paths_that_lead_out_are_refused(self, ground: Ground) -> None:
        """By dots, by root, by zero byte."""
        place = await ground.make()
        for path in ("../x", "a/../../x", "/etc/passwd", "..", "a\0b"):
            await raises(Refused, place.read(path))
            await raises(Refused, place.write(path, b"x"))

    async def test_links_that_lead_out_are_refused(self, ground: Ground) -> None:
        """A hostile tree cannot have us read or write elsewhere; links inside it are fine."""
        place = await ground.make()
        links = "ln -s /etc/passwd a; ln -s /etc b; ln -s ../.. c; ln -s loop loop; ln -s real/in d; mkdir real; echo hi > real/in; ln -s real e"
        assert (await run(place, "sh", "-c", links)).exit == Exit(0)
        for path in ("a", "b/passwd", "c/etc/passwd", "c/x"):
            await raises(Refused, place.read(path))
            await raises(Refused, place.write(path, b"x"))
        await raises(Refused, place.read("loop"))
        assert (await place.read("d"), await place.read("e/in")) == (b"hi\n", b"hi\n")

    async def test_what_is_not_a_file_is_refused(self, ground: Ground) -> None:
        """Also a pipe, on which one would wait for ever."""
        place = await ground.make()
        assert (await run(place, "sh", "-c", "mkdir folder && mkfifo pipe")).exit == Exit(0)
        async with asyncio.timeout(PATIENCE):
            await raises(Refused, place.read("folder"))
            await raises(Refused, place.read("pipe"))
            await raises(Refused, place.write("folder", b"x"))

    async def test_the_home_is_reached_by_its_absolute_path(self, ground: Ground) -> None:
        """As a command inside calls it."""
        place = await ground.make()
        home = b"".join((await run(place, "sh", "-c", 'mkdir "$HOME/.tool"; echo 1 > "$HOME/.tool/log"; printf %s "$HOME"')).out).decode()
        assert await place.read(f"{home}/.tool/log") == b"1\n"
        await place.write(f"{home}/.tool/conf", b"2")
        assert (await run(place, "sh", "-c", 'cat "$HOME/.tool/conf"')).out == [b"2"]


class LifeContract:
    """What `SandboxProvider` promises."""

    async def test_it_can_work_here(self, ground: Ground) -> None:
        """Checking says nothing where all is well."""
        assert ground.provider.kind
        await ground.provider.check()

    async def test_making_it_twice_gives_the_same(self, ground: Ground) -> None:
        """With the files of the first time."""
        first = await ground.make()
        await first.write("x", b"1")
        second = await ground.make()
        assert (second.name, second.work, second.socket) == (first.name, first.work, first.socket)
        assert await second.read("x") == b"1"

    async def test_it_can_be_attached_to_by_name(self, ground: Ground) -> None:
        """The name is the handle."""
        made = await ground.make()
        await made.write("x", b"1")
        found = await ground.provider.attach(NAME)
        assert (found.name, found.work, await found.read("x")) == (NAME, made.work, b"1")

    async def test_an_unknown_name_is_lost(self, ground: Ground) -> None:
        """So is one that was destroyed."""
        await raises(SandboxLost, ground.provider.attach("never-made"))
        await ground.make()
        await ground.provider.destroy(NAME)
        await raises(SandboxLost, ground.provider.attach(NAME))

    async def test_it_can_be_destroyed_twice(self, ground: Ground) -> None:
        """Unknown names are fine."""
        await ground.make()
        for name in (NAME, NAME, "never-made"):
            await ground.provider.destroy(name)
        assert await ground.provider.names("") == []

    async def test_destroying_it_ends_what_runs_in_it(self, ground: Ground) -> None:
        """Its files stay."""
        place = await ground.make()
        async with asyncio.timeout(PATIENCE), place.start(Command(("sh", "-c", f"{HEART} sleep 600"))) as process:
            await lively(place)
            await ground.provider.destroy(NAME)
            with contextlib.suppress(SandboxLost):
                assert (await process.wait()).code != 0
        again = await ground.make()
        await again.read("beat")  # raises if it is gone; a beat cut short may be empty
        await still(again)

    async def test_names_are_found_by_prefix(self, ground: Ground) -> None:
        """Whatever characters they have."""
        for name in ("run-1/a/1", "run-1/b..c/1", "run-2/a/1", "é%"):
            await ground.make(name)
        assert sorted(await ground.provider.names("run-1/")) == ["run-1/a/1", "run-1/b..c/1"]
        assert len(await ground.provider.names("")) == 4
        await ground.provider.destroy("run-1/a/1")
        assert await ground.provider.names("run-1/") == ["run-1/b..c/1"]

    async def test_a_source_that_is_not_there_is_unavailable(self, ground: Ground) -> None:
        """Before anything is made."""
        spec = ground.spec(NAME)
        missing = Bind(spec.binds[0].source / "none", "/home/agent/none")
        await raises(Unavailable, ground.provider.create(replace(spec, binds=(*spec.binds, missing))))
        assert await ground.provider.names("") == []

    async def test_two_sandboxes_do_not_share_files(self, ground: Ground) -> None:
        """Each has its own."""
        one, two = await ground.make("one"), await ground.make("two")
        await one.write("x", b"1")
        await raises(NotFound, two.read("x"))


class SandboxContract(CommandContract, FileContract, LifeContract):
    """The promises of `ports/sandbox.py`."""
