"""What is installed: locked by hash, within the ranges users get, without versions known to be
vulnerable; and what SECURITY.md stands on.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from paths import ROOT, TESTS

ROOT = ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
ASKED = {
    name: Requirement(line)
    for line in PROJECT["project"]["dependencies"]
    for name in [Requirement(line).name.lower()]
}


def locked(name: str) -> dict[str, str]:
    """Versions by name; fails on a line that is neither a pinned package nor the hash of one: no
    option, address or path stands in a lock.
    """
    versions: dict[str, str] = {}
    hashes: dict[str, int] = {}
    for line in (ROOT / "locks" / f"{name}.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        if pinned := re.fullmatch(r"([a-z0-9-]+)==([\w.]+)( ; [\w\s.'<>=!()]+)? \\", line):
            package = pinned[1]
            versions[package] = pinned[2]
            hashes[package] = 0
            continue
        assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line), line
        hashes[package] += 1
    assert min(hashes.values()) > 0
    return versions


def torch() -> dict[str, str]:
    (line,) = [
        line
        for line in (ROOT / "locks" / "torch.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    name, version = line.split("==")
    return {name: version}


@pytest.mark.parametrize(("lock", "extra"), [("dev", "dev"), ("bench", "bench")])
def test_a_lock_holds_all_that_is_asked_for_within_its_range(lock, extra):
    versions = locked(lock) | torch()
    for asked in [*ASKED.values(), *map(Requirement, EXTRAS[extra])]:
        assert asked.specifier.contains(versions[asked.name.lower().replace("_", "-")]), asked


def test_what_stands_in_two_locks_has_one_version():
    dev, bench = locked("dev"), locked("bench")
    assert {name: dev[name] for name in dev.keys() & bench} == {
        name: bench[name] for name in dev.keys() & bench
    }
    assert {"pip-audit", "uv"} <= locked("tools").keys()


@pytest.mark.parametrize(("name", "version"), [("torch", "2.9.1"), ("transformers", "5.4.0")])
def test_versions_that_run_code_from_a_file_are_out_of_range(name, version):
    """CVE-2026-24747, and CVE-2026-5241 with all before it: see SECURITY.md."""
    assert not ASKED[name].specifier.contains(version)


def test_the_advisory_that_is_passed_over_concerns_nothing_here():
    files = [
        file
        for folder in ("src", "bench", "docs", "examples")
        for file in (ROOT / folder).rglob("*.py")
    ]
    assert len(files) > 50
    assert [file for file in files if "torch.jit" in file.read_text()] == []


# ---------------------------------------------------------------- .ci/audit.py

GOOD = {"name": "good", "version": "1", "vulns": []}
BAD = {
    "name": "bad",
    "version": "2",
    "vulns": [{"id": "CVE-1", "fix_versions": ["3"], "aliases": []}],
}
MISSING = {"name": "missing", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "error", "code", "said"),
    [
        ([GOOD, GOOD], "", 0, "audit: 0 known vulnerabilities in 1 packages\n"),
        (
            [GOOD, BAD],
            "",
            1,
            "audit: 1 known vulnerabilities in 2 packages\n  bad 2: CVE-1, mended in 3\n",
        ),
        ([GOOD, MISSING], "", 0, "in 1 packages; the service does not know missing"),
        ([MISSING], "", 0, "skipped, the advisory service knows none of the 1 packages"),
        (
            None,
            "Traceback\nrequests.exceptions.ProxyError: refused",
            0,
            (
                "skipped, the advisory service gives no answer: requests.exceptions.ProxyError:"
                " refused"
            ),
        ),
        (
            None,
            "pip_audit._service.interface.ServiceError",
            0,
            "skipped, the advisory service gives no answer",
        ),
        (
            None,
            "ERROR: Tip: your network may be blocking this service.",
            0,
            "skipped, the advisory service gives no answer",
        ),
        (None, "requirement x does not contain a hash", 1, "pip-audit failed"),
        (None, "", 1, "pip-audit failed"),
    ],
)
def test_the_audit_fails_on_a_vulnerability_and_says_when_it_was_skipped(
    tmp_path, packages, error, code, said
):
    tool = tmp_path / "pip-audit"
    answer = "" if packages is None else json.dumps({"dependencies": packages})
    tool.write_text(
        f"#!{sys.executable}\nimport sys\nprint({answer!r})\nprint({error!r},"
        f" file=sys.stderr)\nsys.exit({code})\n"
    )
    tool.chmod(0o755)
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "audit.py", tool, "one.txt", "two.txt"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, said in done.stdout) == (code, True), done.stdout + done.stderr


# ---------------------------------------------------------------- SECURITY.md


def test_every_promise_names_a_test_that_is_there():
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text())
    files = {path.name: path for path in TESTS.rglob("test_*.py")}
    assert len(named) > 20
    assert [
        (file, test)
        for file, test in named
        if not re.search(rf"^def {test}\(", files[file].read_text(), re.MULTILINE)
    ] == []
