"""Training on Kubernetes: a RayJob for the KubeRay operator, `launch/pretrain.sh CONFIG --launcher kubernetes`.

A pod a node, each with its GPUs. The first is Ray's head: the driver runs there (data, evaluation, registry, report)
and starts the ranks on all pods with `--launcher ray`. Data and runs lie on one volume that all pods mount. When the
head is lost, the job starts a new cluster, and the run goes on from its newest checkpoint.
"""

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from data_pipeline.base.config import load
from data_pipeline.base.errors import ConfigError, PdepotError
from launch.launcher import Launcher
from launch.messages import exit_code

_LONGEST_NAME = 40  # KubeRay adds to it, for names that may have 63 characters
_SECONDS_FOR_LOGS = 600
"""After the end, for somebody to read the head's logs before it goes."""
_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_NO_SERVER = (
    "warning: neither --secret nor --config-map, so no MLFLOW_TRACKING_URI: the tracking database is a SQLite file on "
    "the volume, runs/mlflow.db, which a network disk may not lock safely. Name a server there."
)


@dataclass(frozen=True)
class Pods:
    """What runs where. All of it becomes values of the manifest.

    Raises:
        ConfigError: a value that Kubernetes would refuse; names the flag.
    """

    name: str
    """What the names of the job and its pods begin with."""
    image: str
    """Has pdepot and its dependencies installed, with Ray of this version."""
    claim: str
    """The persistent volume claim (ReadWriteMany) with configurations, data and runs."""
    nodes: int = 1
    gpus_per_node: int = 1
    cpus_per_node: int = 8
    memory_per_node: str = "64Gi"
    namespace: str | None = None
    """None: kubectl's own."""
    mount: str = "/work"
    """Where the volume is mounted; relative paths start there."""
    secret: str | None = None
    """Its entries become environment variables, such as MLFLOW_TRACKING_URI and AWS_SECRET_ACCESS_KEY."""
    config_map: str | None = None
    """As `secret`, for what is none."""
    retries: int = 3
    """How often a new cluster is started after the head was lost or the driver has failed."""
    deadline: int | None = None
    """Seconds after which the job is ended."""

    def __post_init__(self) -> None:
        names = f"up to {_LONGEST_NAME} lower-case letters, digits and hyphens"
        self._check("name", _LABEL, names, longest=_LONGEST_NAME)
        self._check("image", r"\S+", "REGISTRY/IMAGE:TAG")
        self._check("memory_per_node", r"[1-9][0-9]*(Ki|Mi|Gi|Ti)?", "an amount such as 64Gi")
        self._check("mount", r"/[^\0:]+", "an absolute path")
        self._check("namespace", _LABEL, "a namespace's name", longest=63)
        for key in ("claim", "secret", "config_map"):
            self._check(key, _SUBDOMAIN, "an object's name: lower-case letters, digits, hyphens and dots", longest=253)
        lowest = {"nodes": 1, "gpus_per_node": 1, "cpus_per_node": 1, "retries": 0, "deadline": 1}
        for key, bound in lowest.items():
            if (value := getattr(self, key)) is not None and value < bound:
                raise ConfigError("too small", key=_flag(key), found=value, expected=f"{bound} or more")

    def _check(self, key: str, pattern: str, expected: str, longest: int = 1000) -> None:
        value = getattr(self, key)
        if value is not None and not (re.fullmatch(pattern, value) and len(value) <= longest):
            raise ConfigError("Kubernetes would refuse this", key=_flag(key), found=value, expected=expected)


def ray_job(pods: Pods, config: str, settings: Sequence[str]) -> dict[str, Any]:
    """The manifest of a RayJob that runs `config`, a path on the volume, with `key=value` settings."""
    driver = ["python", "-m", "launch.pipeline", config, "--launcher", "ray"]
    driver += ["--nodes", str(pods.nodes), "--gpus-per-node", str(pods.gpus_per_node), *settings]
    spec = {
        # HTTPMode hands the entrypoint to one shell, on the head. The default mode hands it to a second one before,
        # which would take the quotes off.
        "submissionMode": "HTTPMode",
        "entrypoint": f"cd {shlex.quote(pods.mount)} && exec {shlex.join(driver)}",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": _SECONDS_FOR_LOGS,
        "backoffLimit": pods.retries,
        "rayClusterSpec": _cluster_spec(pods),
    }
    if pods.deadline is not None:
        spec["activeDeadlineSeconds"] = pods.deadline
    return _manifest("RayJob", pods, spec)


def ray_cluster(pods: Pods) -> dict[str, Any]:
    """The manifest of a RayCluster that stays, for any number of jobs."""
    return _manifest("RayCluster", pods, _cluster_spec(pods))


def _manifest(kind: str, pods: Pods, spec: dict[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = {"labels": {"app.kubernetes.io/name": "pdepot"}}
    if kind == "RayJob":
        metadata["generateName"] = f"{pods.name}-"  # the same job may be sent again: its run goes on
    else:
        metadata["name"] = pods.name
    if pods.namespace is not None:
        metadata["namespace"] = pods.namespace
    return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": metadata, "spec": spec}


def _cluster_spec(pods: Pods) -> dict[str, Any]:
    # The dashboard takes the job, from the operator: it must be reached from outside its pod.
    head = {"rayStartParams": {"dashboard-host": "0.0.0.0"}, "template": _pod(pods, "ray-head")}  # noqa: S104
    spec: dict[str, Any] = {"rayVersion": version("ray"), "headGroupSpec": head}
    if pods.nodes > 1:
        others = pods.nodes - 1
        group = {"groupName": "nodes", "replicas": others, "minReplicas": others, "maxReplicas": others}
        spec["workerGroupSpecs"] = [group | {"rayStartParams": {}, "template": _pod(pods, "ray-worker")}]
    return spec


def _pod(pods: Pods, container: str) -> dict[str, Any]:
    amounts = {"cpu": str(pods.cpus_per_node), "memory": pods.memory_per_node}
    amounts["nvidia.com/gpu"] = str(pods.gpus_per_node)
    sources = {"secretRef": pods.secret, "configMapRef": pods.config_map}
    description = {
        "name": container,
        "image": pods.image,
        "workingDir": pods.mount,
        "envFrom": [{source: {"name": name}} for source, name in sources.items() if name is not None],
        "resources": {"requests": amounts, "limits": dict(amounts)},
        "volumeMounts": [{"name": "work", "mountPath": pods.mount}],
        "securityContext": {"allowPrivilegeEscalation": False},
    }
    return {
        "metadata": {"labels": {"app.kubernetes.io/name": "pdepot"}},
        "spec": {
            "containers": [description],
            "volumes": [{"name": "work", "persistentVolumeClaim": {"claimName": pods.claim}}],
            "automountServiceAccountToken": False,  # nothing in the pods talks to Kubernetes
        },
    }


def check_ranks(pods: Pods, config: Path, settings: Sequence[str]) -> None:
    """Refuse now what would end the driver within the cluster, once for each of its retries.

    Args:
        pods: where the ranks are to run.
        config: this machine's copy of the configuration.
        settings: `key=value` for it.

    Raises:
        ConfigError: the configuration is wrong, or its batch does not divide among the ranks.
    """
    from launch.pipeline import load_finetuning
    from launch.ranks import check_launch
    from pretrain.config import PretrainConfig

    job = load(PretrainConfig, config, settings)
    here = job.finetune is not None and (config.parent / job.finetune).is_file()
    finetuning = load_finetuning(job, config.parent) if here else None
    for training in [job.training, *([finetuning[0].training] if finetuning else [])]:
        check_launch(training, Launcher("ray", pods.nodes, pods.gpus_per_node))


def create(manifest: dict[str, Any]) -> None:
    """Hand the manifest to the cluster that kubectl is set up for.

    Raises:
        PdepotError: there is no kubectl, or it refuses.
    """
    try:
        done = subprocess.run(
            ["kubectl", "create", "-f", "-"], input=_text(manifest), text=True, stderr=subprocess.PIPE, check=False
        )
    except FileNotFoundError as error:
        raise PdepotError(
            "kubectl is not installed here", remedy="install it, or take the manifest that --dry-run prints there"
        ) from error
    if done.returncode:
        raise PdepotError(
            "Kubernetes has not taken the manifest", found=done.stderr.strip(),
            expected="a cluster with the KubeRay operator, and the right to create a RayJob or RayCluster",
            remedy="`kubectl config current-context` shows which cluster is asked; --dry-run prints the manifest",
        )  # fmt: skip


def _text(manifest: dict[str, Any]) -> str:
    return yaml.safe_dump(manifest, sort_keys=False)


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pretrain.sh --launcher kubernetes", description="Pretrain on Kubernetes, with the KubeRay operator.",
        epilog="example: bash launch/pretrain.sh configs/pretrain/modern.yaml --launcher kubernetes --nodes 2 "
        "--gpus-per-node 8 --image registry/pdepot:1 --claim pdepot --secret mlflow training.micro_batch=8",
    )  # fmt: skip
    parser.add_argument("config", nargs="?", help="pretraining configuration: a path on the volume; what lies "
                        "here under the same path is checked before anything is created")  # fmt: skip
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings that replace those of the file")
    parser.add_argument("--image", required=True, help="image with pdepot installed")
    parser.add_argument("--claim", required=True, help="volume claim that all pods mount: configurations, data, runs")
    parser.add_argument("--mount", default=Pods.mount, help=f"where they mount it (default: {Pods.mount})")
    parser.add_argument("--nodes", type=int, default=Pods.nodes, help="pods (default: 1)")
    parser.add_argument("--gpus-per-node", type=int, default=Pods.gpus_per_node, help="GPUs of each (default: 1)")
    parser.add_argument("--cpus-per-node", type=int, default=Pods.cpus_per_node, help="CPUs of each (default: 8)")
    parser.add_argument("--memory-per-node", default=Pods.memory_per_node, help="of each (default: 64Gi)")
    parser.add_argument("--secret", help="its entries become environment variables: MLFLOW_TRACKING_URI, AWS_...")
    parser.add_argument("--config-map", help="as --secret, for what is none")
    parser.add_argument("--name", help="what the job's name begins with (default: the configuration's)")
    parser.add_argument("--namespace", help="default: kubectl's own")
    parser.add_argument("--retries", type=int, default=Pods.retries, help="new clusters after a failure (default: 3)")
    parser.add_argument("--deadline", type=int, metavar="SECONDS", help="end the job after so long")
    parser.add_argument("--cluster", action="store_true", help="a RayCluster that stays, instead of a job")
    parser.add_argument("--dry-run", action="store_true", help="print the manifest, and end")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Render the manifest that the arguments ask for, and print it (`--dry-run`) or create it.

    Raises:
        ConfigError: arguments that Kubernetes would refuse, or as `check_ranks` where the configuration is here, too.
        PdepotError: as `create`.
    """
    options = vars(_parser().parse_intermixed_args(arguments))
    config, settings = options.pop("config"), options.pop("settings")
    dry_run, cluster = options.pop("dry_run"), options.pop("cluster")
    if (config is None) != cluster:
        raise ConfigError("a job needs a configuration, and a cluster has none", key="CONFIG, --cluster", found=config)
    stem = PurePosixPath(config or "pdepot").stem
    options["name"] = options["name"] or re.sub("[^a-z0-9]+", "-", stem.lower()).strip("-")[:_LONGEST_NAME]
    pods = Pods(**options)
    if not cluster and Path(config).is_file():
        check_ranks(pods, Path(config), settings)
    if not cluster and pods.secret is None and pods.config_map is None:
        print(_NO_SERVER, file=sys.stderr)
    manifest = ray_cluster(pods) if cluster else ray_job(pods, config, settings)
    if dry_run:
        print(_text(manifest), end="")
    else:
        create(manifest)
    return 0


def main(arguments: Sequence[str]) -> int:
    """As `run`; a user's error is one clear message and exit code 1."""
    return exit_code(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
