import subprocess
import sys

import pytest

from almanac.report import main, summarise

LINES = ["logs,1.5 KiB", "photos,3 MiB", "mail,2 KiB", "", "notes,512"]


def test_summarise_reads_names_and_sizes():
    assert summarise(LINES) == [("logs", 1536), ("photos", 3 * 1024**2), ("mail", 2048), ("notes", 512)]


def test_summarise_names_the_bad_line():
    with pytest.raises(ValueError, match="line 2"):
        summarise(["a,1 KiB", "b,much"])


def test_report_is_a_table_with_total_and_median(tmp_path, capsys):
    file = tmp_path / "sizes.csv"
    file.write_text("\n".join(LINES))
    assert main([str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "name      bytes  size",
        "------  -------  -------",
        "photos  3145728  3.0 MiB",
        "mail       2048  2.0 KiB",
        "logs       1536  1.5 KiB",
        "notes       512  512 B",
        "",
        "total 3.0 MiB, median 1.8 KiB",
    ]


def test_report_of_a_missing_file_fails_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "none.csv")]) == 1
    assert capsys.readouterr().err.startswith("almanac: ")


def test_report_runs_as_a_program(tmp_path):
    file = tmp_path / "sizes.csv"
    file.write_text("a,1")
    done = subprocess.run([sys.executable, "-m", "almanac.report", str(file)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "total 1 B, median 1 B"
