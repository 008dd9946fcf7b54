"""Known vulnerabilities of the locked versions, told by pip-audit: python .ci/audit.py PIP_AUDIT
LOCK...

Leaves with 1 where there is one. Where the advisory service gives no answer, or knows none of the
packages (a mirror without advisories: pip-audit by itself calls that "no known vulnerabilities"),
one line says so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

# Advisories that do not concern us, each with its reason.
IGNORED = {
    "CVE-2025-3000": (
        "torch.jit.script, which is called nowhere here (tests/unit/test_supply.py); the advisory"
        " names no version that mends it"
    )
}
UNREACHABLE = (
    "requests.exceptions.",
    "ServiceError",
    "your network",
)  # in pip-audit's last line, when the service gives no answer


def main(tool: str, *locks: str) -> int:
    packages: dict[str, dict[str, Any]] = {}
    for lock in locks:  # one by one: pip-audit takes no file with hashes beside one without
        done = subprocess.run([*ask(tool), "--requirement", lock], capture_output=True, text=True)
        if not done.stdout.strip():
            last = (done.stderr.strip().splitlines() or [""])[-1]
            if any(sign in last for sign in UNREACHABLE):
                return say(0, f"skipped, the advisory service gives no answer: {last[:200]}")
            return say(1, f"pip-audit failed on {lock}:\n{done.stderr}")
        packages |= {
            f"{one['name']} {one.get('version', '')}": one
            for one in json.loads(done.stdout)["dependencies"]
        }
    known = {name: one for name, one in packages.items() if "vulns" in one}
    if not known:
        return say(
            0,
            f"skipped, the advisory service knows none of the {len(packages)} packages (a mirror"
            " without advisories?)",
        )
    found = [
        f"  {name}: {vuln['id']}, mended in {', '.join(vuln['fix_versions']) or 'no version'}"
        for name, one in known.items()
        for vuln in one["vulns"]
    ]
    unknown = (
        f"; the service does not know {', '.join(sorted(packages.keys() - known))}"
        if len(known) < len(packages)
        else ""
    )
    return say(
        min(len(found), 1),
        "\n".join(
            [f"{len(found)} known vulnerabilities in {len(known)} packages{unknown}", *found]
        ),
    )


def ask(tool: str) -> list[str]:
    ignored = [word for name in IGNORED for word in ("--ignore-vuln", name)]
    return [
        tool,
        "--no-deps",
        "--disable-pip",
        "--progress-spinner",
        "off",
        "--format",
        "json",
        *ignored,
    ]


def say(code: int, text: str) -> int:
    print(f"audit: {text}")
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
