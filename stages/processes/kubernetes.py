"""An Indexed Job that trains on several machines: python -m stages.processes.kubernetes FOLDER TOKEN

The user's template (deploy/kubernetes/nodes.yaml) says what only the cluster's owner knows: image, volumes
with the store, resources. This fills in how many pods run, and what runs in them; the pod's index is the
number of its machine. Other objects in the file, as a NetworkPolicy, are applied before.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.errors import FairwayError, SpecError, on_one_line
from stages.processes.launch import leave_error
from stages.processes.meeting import Meeting

TEMPLATE = "FAIRWAY_KUBERNETES_JOB"
_POLL_SECONDS = 2.0


def template_path(environment: Mapping[str, str]) -> Path:
    """The template that FAIRWAY_KUBERNETES_JOB names. Raises SpecError where it names no file."""
    given = environment.get(TEMPLATE, "")
    if not Path(given).is_file():
        raise SpecError(
            f"{TEMPLATE} = {given!r}: no such file. Name the template of a Job, as in "
            "docs/several-machines.md"
        )
    return Path(given)


def parts_of(shown: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The Job and the other objects in what kubectl prints for the template: JSON objects one after another.

    Raises SpecError unless there is one Job.
    """
    objects, decoder, rest = list[dict[str, Any]](), json.JSONDecoder(), shown.strip()
    while rest:
        found, end = decoder.raw_decode(rest)
        objects += found["items"] if found["kind"] == "List" else [found]
        rest = rest[end:].lstrip()
    jobs = [item for item in objects if item["kind"] == "Job"]
    if len(jobs) != 1:
        raise SpecError(f"{TEMPLATE}: has {len(jobs)} Jobs; must have one (batch/v1)")
    return jobs[0], [item for item in objects if item is not jobs[0]]


def filled(template: Mapping[str, Any], num_nodes: int, folder: Path, token: str) -> dict[str, Any]:
    """The Job of one try: the template with its name, its number of pods and the command of each.

    A pod that fails fails the Job, because the stage tries again itself. Raises SpecError for a template that
    is no Job with one container.
    """
    try:
        pod = template["spec"]["template"]
        [container] = pod["spec"]["containers"]
    except (KeyError, TypeError, ValueError) as error:
        raise SpecError(f"{TEMPLATE}: must be a Job with one container (batch/v1)") from error
    command = ["python", "-m", "stages.processes.node", "kubernetes", str(folder), token]
    metadata = {**template.get("metadata", {}), "name": f"fairway-{token[:16]}"}
    counts = {
        "completionMode": "Indexed",
        "completions": num_nodes,
        "parallelism": num_nodes,
        "backoffLimit": 0,
        "ttlSecondsAfterFinished": 600,
    }
    pod_spec = {
        **pod["spec"],
        "restartPolicy": "Never",
        "containers": [{**container, "command": command, "args": []}],
    }
    spec = {**template["spec"], **counts, "template": {**pod, "spec": pod_spec}}
    return {**template, "metadata": metadata, "spec": spec}


def main() -> None:
    meeting = Meeting(Path(sys.argv[1]), sys.argv[2])
    try:
        shown = _kubectl(
            "create", "--dry-run=client", "--output=json", f"--filename={template_path(os.environ)}"
        )
        template, others = parts_of(shown)
        order = meeting.order()
        job = filled(template, order.compute.num_nodes, meeting.folder, meeting.token)
        if others:
            given = {"apiVersion": "v1", "kind": "List", "items": others}
            _kubectl("apply", "--filename=-", given=json.dumps(given))
        _kubectl("create", "--filename=-", given=json.dumps(job))
    except FairwayError as error:
        leave_error(meeting.folder, error)
        sys.exit(1)
    name = job["metadata"]["name"]
    try:
        sys.exit(_follow(name, order.compute.num_nodes))
    finally:
        _kubectl("delete", "--wait=false", "--ignore-not-found", "job", name)


def _follow(job_name: str, num_pods: int) -> int:
    """Print the lines of all pods until the Job has ended; 0 if it completed."""
    log = [
        *("kubectl", "logs", "--follow", "--prefix=false", "--max-log-requests=256", "--ignore-errors"),
        *(f"--selector=job-name={job_name}", "--pod-running-timeout=10m"),
    ]
    lines: subprocess.Popen | None = None
    try:
        while True:
            state = json.loads(_kubectl("get", "--output=json", "job", job_name)).get("status", {})
            ended = {item["type"] for item in state.get("conditions", ()) if item["status"] == "True"}
            if lines is None and (state.get("ready") == num_pods or ended):
                lines = subprocess.Popen(log)
            if ended & {"Complete", "Failed"}:
                return 0 if "Complete" in ended else 1
            time.sleep(_POLL_SECONDS)
    finally:
        if lines is not None:
            _end(lines)


def _end(lines: subprocess.Popen) -> None:
    try:
        lines.wait(10)  # the last lines may still be on their way
    except subprocess.TimeoutExpired:
        lines.kill()
        lines.wait()


def _kubectl(*arguments: str, given: str | None = None) -> str:
    """What kubectl prints. Raises SpecError with its own words where it fails."""
    done = subprocess.run(["kubectl", *arguments], input=given, capture_output=True, text=True)
    if done.returncode:
        raise SpecError(f"launcher = kubernetes: kubectl {arguments[0]}: {on_one_line(done.stderr)}")
    return done.stdout


if __name__ == "__main__":
    main()
