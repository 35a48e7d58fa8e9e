"""The manifests for Kubernetes, the Dockerfile, and docs/pods.md, which shows them and a dry run."""

import contextlib
import difflib
import io
import os
import re
import shlex
import subprocess
import tomllib

import pytest
import yaml

from tests.conftest import ROOT
from tools.launch import tpu
from tools.launch.tpu_life import STOPPED
from vit_registers.runtime import distributed

LAUNCH = ROOT / "tools" / "launch"
KINDS = ("tpu", "gpu")
PAGE = (ROOT / "docs" / "pods.md").read_text()
EXTRAS = re.compile(r"EXTRAS=([\w,]+)")

# Of jobset.x-k8s.io/v1alpha2: the fields of each object, and the actions and names of rules.
SPEC = {"replicatedJobs", "network", "successPolicy", "failurePolicy", "suspend", "coordinator"}
RULE = {"name", "action", "onJobFailureReasons", "targetReplicatedJobs"}
ACTIONS = {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"}
RULE_NAME = r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?"


def manifest(kind):
    return yaml.safe_load((LAUNCH / f"jobset_{kind}.yaml").read_text())


def job_of(kind):
    (replicated,) = manifest(kind)["spec"]["replicatedJobs"]
    assert set(replicated) == {"name", "replicas", "template"} and replicated["replicas"] == 1
    return replicated["name"], replicated["template"]["spec"]


def container_of(kind):
    (container,) = job_of(kind)[1]["template"]["spec"]["containers"]
    return container


@pytest.mark.parametrize("kind", KINDS)
def test_a_jobset_has_the_fields_of_its_kind(kind):
    jobset = manifest(kind)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(jobset) == {"apiVersion", "kind", "metadata", "spec"} and set(jobset["spec"]) <= SPEC
    assert set(jobset["spec"]["failurePolicy"]) == {"maxRestarts", "rules"}
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        assert set(rule) <= RULE and rule["action"] in ACTIONS and re.fullmatch(RULE_NAME, rule["name"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_job_is_one_of_kubernetes(kind):
    schema = pytest.importorskip("kubernetes_validate")
    _, spec = job_of(kind)
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "s16"}, "spec": spec}
    schema.validate(job, "1.31", strict=True)  # raises if it is not one
    with pytest.raises(schema.ValidationError, match="two"):
        schema.validate({**job, "spec": {**spec, "parallelism": "two"}}, "1.31", strict=True)


def action_on(kind, *, code=None, is_disrupted=False):
    """What Kubernetes does with a failed pod: the first rule that matches; None: it counts as a failure."""
    _, job = job_of(kind)
    for rule in job["podFailurePolicy"]["rules"]:
        on = rule.get("onExitCodes")
        if on is not None:
            assert (on["containerName"], on["operator"]) == (container_of(kind)["name"], "In")
            if code in on["values"]:
                return rule["action"]
        elif is_disrupted and rule["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]:
            return rule["action"]
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_exit_codes(kind):
    """An error that must be fixed ends all; what follows from a preemption does not count."""
    assert action_on(kind, code=distributed.FIXABLE) == "FailJob"
    assert action_on(kind, code=distributed.LOST) == "Ignore"
    assert action_on(kind, code=STOPPED) == "Ignore"
    assert action_on(kind, code=137, is_disrupted=True) == "Ignore"
    assert action_on(kind, code=137) is None and action_on(kind, code=1) is None
    (rule,) = manifest(kind)["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    _, job = job_of(kind)
    assert job["backoffLimit"] == 0 and job["completionMode"] == "Indexed"
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy requires it
    assert f"--stop_code={STOPPED}" in container_of(kind)["args"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_processes_find_each_other(kind):
    name, job = job_of(kind)
    flags = dict(word.partition("=")[::2] for word in container_of(kind)["args"])
    assert job["parallelism"] == job["completions"]
    if kind == "tpu":
        assert "--distributed" in flags
        return
    jobset = manifest(kind)
    assert flags["--coordinator"] == f"{{0}}-{name}-0-0.{{0}}:8476".format(jobset["metadata"]["name"])
    assert jobset["spec"]["network"]["enableDNSHostnames"] is True
    assert flags["--num_processes"] == str(job["completions"])
    (variable,) = [one for one in container_of(kind)["env"] if "valueFrom" in one]
    assert flags["--process_id"] == f"$({variable['name']})"
    path = variable["valueFrom"]["fieldRef"]["fieldPath"]
    assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"


@pytest.mark.parametrize("kind", KINDS)
def test_the_arguments_are_those_of_the_program(kind, run_here):
    program, *words = [word.replace("$(PROCESS)", "0") for word in container_of(kind)["args"]]
    code, out, err = run_here(program, *words, "--print_config")
    assert code == 0 and "def get_config" in out, err
    assert any(word.startswith("--workdir=gs://") for word in words)


def test_the_image_is_built_from_the_wheel_with_extras_that_exist(tmp_path):
    """The command of the Dockerfile runs with a pip that prints its arguments."""
    text = (LAUNCH / "Dockerfile").read_text()
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = [EXTRAS.findall((LAUNCH / file).read_text()) for file in ("jobset_tpu.yaml", "jobset_gpu.yaml")]
    assert named == [["tpu,data,gcs"], ["gpu,data,gcs"]] and set(EXTRAS.findall(text)) == {
        *named[0],
        *named[1],
    }
    assert {extra for one in named for extra in one[0].split(",")} <= set(known)
    (command,) = re.findall(r"^RUN (.*)$", text, re.MULTILINE)
    (tmp_path / "wheels").mkdir()
    wheel = tmp_path / "wheels" / "vit_registers-0.1.0-py3-none-any.whl"
    wheel.touch()
    pip = tmp_path / "pip"
    pip.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    pip.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "EXTRAS": "tpu,data,gcs"}
    done = subprocess.run(
        ["sh", "-c", command.replace("/wheels", str(tmp_path / "wheels"))],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["install", "--no-cache-dir", f"{wheel}[tpu,data,gcs]"]
    assert '\nENTRYPOINT ["vit-registers"]\n' in text


# --- docs/pods.md ------------------------------------------------------------------------------


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_has_the_dry_run_of_its_command(monkeypatch):
    (block,) = [block for block in blocks("sh") if "-m tools.launch.tpu" in block]
    words = shlex.split(block.replace("\\\n", " ").splitlines()[-1])
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(tpu.tpu_pod, "WORKER", "tools/launch/tpu_worker.py")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert tpu.main(["--dry_run", *words[words.index("tools.launch.tpu") + 1 :]]) == 0
    assert blocks("text") == [out.getvalue()]


def test_the_page_has_the_manifests():
    one, other = [(LAUNCH / f"jobset_{kind}.yaml").read_text() for kind in KINDS]
    assert blocks("yaml") == [one]
    lines = difflib.unified_diff(one.splitlines(), other.splitlines(), lineterm="", n=0)
    assert blocks("diff")[0].splitlines() == [
        line for line in lines if not line.startswith(("---", "+++", "@@"))
    ]
