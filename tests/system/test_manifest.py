"""launch/mpijob.yaml against the schemas: pods by Kubernetes' own, the MPIJob around them by its documented fields."""

import copy
import pathlib

import jsonschema
import kubernetes_validate
import pytest
import yaml

MANIFEST = pathlib.Path(__file__).parents[2] / "launch" / "mpijob.yaml"
VERSIONS = ["1.30", "1.34"]

INTEGER, TEXT, SWITCH = {"type": "integer", "minimum": 0}, {"type": "string"}, {"type": "boolean"}


def fields(required=(), **properties):
    """A closed object of these fields: what the API server would drop is refused here."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def replicas(exactly=None):
    count = {"const": exactly} if exactly else {"type": "integer", "minimum": 1}
    policies = {"enum": ["Always", "OnFailure", "Never", "ExitCode"]}
    return fields(["template"], replicas=count, restartPolicy=policies, template={"type": "object"})


# From the documentation of kubeflow.org/v2beta1, as its types name and describe the fields.
MPIJOB = fields(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "kubeflow.org/v2beta1"},
    kind={"const": "MPIJob"},
    metadata={"type": "object", "required": ["name"]},
    spec=fields(
        ["mpiReplicaSpecs"],
        slotsPerWorker=INTEGER,
        runLauncherAsWorker=SWITCH,
        sshAuthMountPath=TEXT,
        launcherCreationPolicy={"enum": ["AtStartup", "WaitForWorkersReady"]},
        mpiImplementation={"enum": ["OpenMPI", "Intel", "MPICH"]},
        runPolicy=fields(
            cleanPodPolicy={"enum": ["All", "Running", "None"]},
            ttlSecondsAfterFinished=INTEGER,
            activeDeadlineSeconds=INTEGER,
            backoffLimit=INTEGER,
            suspend=SWITCH,
            managedBy=TEXT,
            schedulingPolicy={"type": "object"},
        ),
        mpiReplicaSpecs=fields(["Launcher", "Worker"], Launcher=replicas(1), Worker=replicas()),
    ),
)

pytestmark = pytest.mark.system


@pytest.fixture
def job():
    return yaml.safe_load(MANIFEST.read_text())


def pods(job):
    """(name, pod as Kubernetes would create it) of each kind of replica."""
    for kind, spec in job["spec"]["mpiReplicaSpecs"].items():
        metadata = {"name": kind.lower(), **spec["template"].get("metadata", {})}
        yield kind, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec["template"]["spec"]}


def test_mpijob(job):
    jsonschema.validate(job, MPIJOB)


@pytest.mark.parametrize("version", VERSIONS)
def test_pods(job, version):
    for _, pod in pods(job):
        kubernetes_validate.validate(pod, version, strict=True)


@pytest.mark.parametrize(
    "place, value",
    [
        (["slotsPerWorker"], "eight"),
        (["runPolicy", "cleanPodPolicy"], "Sometimes"),
        (["mpiReplicaSpecs", "Launcher", "replicas"], 2),
        (["workers"], 2),
    ],
)
def test_a_wrong_mpijob_is_refused(job, place, value):
    """The schema is one that can fail."""
    at = job["spec"]
    for name in place[:-1]:
        at = at[name]
    at[place[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, MPIJOB)


def test_a_wrong_pod_is_refused(job):
    worker = copy.deepcopy(dict(pods(job))["Worker"])
    worker["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(worker, VERSIONS[-1], strict=True)


def test_what_the_parts_say_of_each_other(job):
    """Ranks are workers times slots and GPUs; every mount has its volume; shared memory is memory."""
    spec = job["spec"]
    by_kind = {kind: pod["spec"] for kind, pod in pods(job)}
    (launcher,), (worker,) = (by_kind[kind]["containers"] for kind in ("Launcher", "Worker"))
    count = int(launcher["args"][launcher["args"].index("-np") + 1])
    assert count == spec["mpiReplicaSpecs"]["Worker"]["replicas"] * spec["slotsPerWorker"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == spec["slotsPerWorker"]
    for pod in by_kind.values():
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in worker["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in by_kind["Worker"]["volumes"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert {"/data", "/runs"} <= set(mounts)
    flags = [arg for arg in launcher["args"] if arg.startswith("--flagfile=")]
    assert (MANIFEST.parents[1] / flags[0].partition("=")[2]).is_file()
