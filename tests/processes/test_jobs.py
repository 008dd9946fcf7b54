"""The ready job files: a Slurm script that requeues itself while it gets on, a Kubernetes Job; and
torchrun itself, on two "machines".
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import yaml

import runs
from paths import ROOT
from winnow.system.run_folder import RunFolder

EXAMPLES = ROOT / "examples"
STUB = """#!/bin/bash
echo "$0 $@" >> {log}
case "$(basename "$0") $1" in
    "scontrol show") echo node-1; echo node-2 ;;
    "srun torchrun") {work} ;;
esac
"""


@pytest.fixture
def slurm(tmp_path):
    """sbatch's script beside an `srun` and a `scontrol` that only tell what they were asked; `work`
    is what the run does.
    """

    def submit(work, *more):
        folder, log = tmp_path / "bin", tmp_path / "log"
        folder.mkdir(exist_ok=True)
        for name in ("srun", "scontrol"):
            (folder / name).write_text(STUB.format(log=log, work=work))
            (folder / name).chmod(0o755)
        log.unlink(missing_ok=True)
        env = {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "MODEL": "m",
            "DATA": "d.jsonl",
            "OUT": str(tmp_path / "run"),
        }
        env |= {
            "SLURM_NNODES": "2",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "node-[1-2]",
            "SLURM_CPUS_PER_TASK": "64",
        }
        done = subprocess.run(
            ["bash", str(EXAMPLES / "winnow.sbatch"), *more],
            env=env,
            capture_output=True,
            text=True,
        )
        return (
            done.returncode,
            log.read_text().replace(str(folder) + "/", "").splitlines(),
            done.stderr,
        )

    return submit


def test_slurm_starts_the_command_and_requeues_what_got_on(slurm, tmp_path):
    saved = tmp_path / "run" / "checkpoints"
    code, asked, said = slurm(f"mkdir -p {saved}/step_10; exit 1", "--beta", "0.2")
    assert (code, said) == (0, "")
    assert "--nnodes 2 --nproc-per-node 8" in asked[1]
    assert (
        "--rdzv-id 7 --rdzv-endpoint node-1:29500 -m winnow dpo --model m --data d.jsonl"
        in asked[1]
    )
    assert asked[1].endswith("--async-save --beta 0.2")
    assert asked[-1] == "scontrol requeue 7"
    code, asked, _ = slurm("exit 1")  # an error that comes again: no further than before
    assert (code, "scontrol requeue 7" in asked) == (1, False)
    code, asked, _ = slurm(
        f"mkdir -p {saved}/step_20 {saved}/step_30.tmp-0123abcd; touch {tmp_path}/run/manifest.json"
    )
    assert (code, "scontrol requeue 7" in asked) == (0, False)


def test_slurms_time_to_save_is_longer_than_what_the_launcher_waits():
    text = (EXAMPLES / "winnow.sbatch").read_text()
    assert int(text.partition("--signal=TERM@")[2].split()[0]) > int(
        text.partition("--shutdown-timeout ")[2].split()[0]
    )


def test_the_kubernetes_job_is_one_job():
    service, policy, job = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    words = pod["containers"][0]["command"]
    assert [service["kind"], policy["kind"], job["kind"]] == ["Service", "NetworkPolicy", "Job"]
    assert (
        spec["completions"]
        == spec["parallelism"]
        == int(next(w for w in words if w.startswith("--nnodes=")).partition("=")[2])
    )
    assert pod["subdomain"] == service["metadata"]["name"]
    assert f"--master-addr={job['metadata']['name']}-0.{pod['subdomain']}" in words
    gpus = pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert f"--nproc-per-node={gpus}" in words
    labels = spec["template"]["metadata"]["labels"].items()
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels
    assert service["spec"]["selector"].items() <= labels
    assert pod["terminationGracePeriodSeconds"] > int(
        next(w for w in words if w.startswith("--shutdown-timeout=")).partition("=")[2]
    )
    words = words[words.index("winnow") + 1 :]
    assert all(
        word.lstrip("-").partition("=")[0].replace("-", "_")
        in {"dpo", "model", "data", "out", "async_save"}
        for word in words
    )


@pytest.mark.process
def test_two_launchers_that_find_each_other(tmp_path):
    """torchrun on two machines, both of them this one: the run of one process, and one folder."""
    world = runs.world(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = [
        "-m",
        "torch.distributed.run",
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--rdzv-backend",
        "c10d",
        "--rdzv-id",
        "1",
    ]
    words = [sys.executable, *launch, "--rdzv-endpoint", f"127.0.0.1:{port}", "-m", "winnow"]
    line = runs.line("dpo", world, tmp_path / "two", dtype="float64", rank_timeout=60)
    both = [
        subprocess.Popen(
            [*words, *line], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("report:" in one for one in said) == 1
    two, one = RunFolder(tmp_path / "two"), runs.dpo(world, tmp_path / "one", dtype="float64")
    for row, same in zip(runs.numbers(two), runs.numbers(one), strict=True):
        assert row == pytest.approx(same, rel=1e-12, abs=1e-12)
