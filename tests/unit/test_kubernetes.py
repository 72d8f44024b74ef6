"""Manifests for Kubernetes: accepted by the schemas of KubeRay and of pods, and no word of the user's gets out."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from data_pipeline.base.config import load
from data_pipeline.base.errors import ConfigError, PdepotError
from launch.kubernetes import Pods, _parser, create, ray_cluster, ray_job, run
from launch.launcher import Launcher, add_launcher_flags, launcher_of
from launch.pipeline import load_finetuning
from launch.ranks import check_launch
from pretrain.config import PretrainConfig

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ROOT / "tests/data/crds"
PODS = Pods("demo", "registry.example/pdepot:1", "pdepot", 3, 8, secret="mlflow", config_map="nccl")


def schema(kind: str) -> dict[str, Any]:
    kuberay, pod = (json.loads((SCHEMAS / f"{name}.json").read_text()) for name in ("kuberay", "pod"))
    return {"$ref": f"#/$defs/{kind}", "$defs": strict(kuberay | pod)}


def strict(node: Any) -> Any:
    """Where fields are listed there are no others: kubectl refuses them, and a server would drop them."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: strict(value) for key, value in node.items()}
    if isinstance(node.get("properties"), dict) and isinstance(node.get("type"), str):
        node.setdefault("additionalProperties", False)
    return node


VALIDATORS = {kind: jsonschema.Draft202012Validator(schema(kind)) for kind in ("RayJob", "RayCluster")}


def check(manifest: dict[str, Any], kind: str) -> None:
    """Validate what is read back from YAML, as the cluster does."""
    VALIDATORS[kind].validate(yaml.safe_load(yaml.safe_dump(manifest)))


def job(*settings: str, pods: Pods = PODS) -> dict[str, Any]:
    return ray_job(pods, "configs/demo.yaml", settings)


@pytest.mark.parametrize("pods", [PODS, Pods("one", "image", "claim", deadline=60, namespace="team")])
def test_manifests_are_accepted(pods: Pods) -> None:
    check(job(pods=pods), "RayJob")
    check(ray_cluster(pods), "RayCluster")


def places(value: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """The path to every value within a nested one."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, key)
            yield from places(inner, *path, key)


ANY_KEY = ("labels", "rayStartParams", "requests", "limits")


def test_a_misspelt_field_or_a_wrong_type_is_refused_wherever_it_stands() -> None:
    paths = list(places(job()))
    assert len(paths) > 90
    for *outer, key in paths:
        for spoil in ("name", "type"):
            manifest = job()
            holder = reduce(getitem, outer, manifest)
            if spoil == "type":
                holder[key] = [[holder[key]]]
            elif isinstance(holder, dict) and not (outer and outer[-1] in ANY_KEY):
                holder[f"{key}x"] = holder.pop(key)
            else:
                continue
            with pytest.raises(jsonschema.ValidationError):
                check(manifest, "RayJob")


def test_every_node_has_its_gpus_the_volume_and_the_environment() -> None:
    spec = job()["spec"]["rayClusterSpec"]
    (group,) = spec["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (2, 2, 2)
    for part in (spec["headGroupSpec"], group):
        (container,) = part["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
        assert container["envFrom"] == [{"secretRef": {"name": "mlflow"}}, {"configMapRef": {"name": "nccl"}}]
        assert container["volumeMounts"] == [{"name": "work", "mountPath": "/work"}]
        (volume,) = part["template"]["spec"]["volumes"]
        assert volume["persistentVolumeClaim"] == {"claimName": "pdepot"}
    assert "workerGroupSpecs" not in ray_cluster(Pods("one", "image", "claim"))["spec"]


def test_a_job_ends_with_its_cluster_and_is_tried_again() -> None:
    spec = job(pods=Pods("one", "image", "claim", retries=2, deadline=3600))["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] == 600  # to read its logs before it goes
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"]) == (2, 3600)
    assert "activeDeadlineSeconds" not in job()["spec"]


NASTY = ["name=$(touch broken)", "x='; touch broken; '", "y=a b", "tags=[yes, 1.0]", 'z="`touch broken`"', "w=a\nb: c"]


def test_the_users_words_reach_the_driver_as_they_were_typed(tmp_path: Path) -> None:
    """The entrypoint is run by a shell, as on the head, with a `python` that writes down what it is given."""
    (tmp_path / "python").write_text(
        f"#!{sys.executable}\nimport json, sys\nopen('words.json', 'w').write(json.dumps(sys.argv[1:]))\n"
    )
    (tmp_path / "python").chmod(0o755)
    volume = tmp_path / "a volume's $HOME"
    volume.mkdir()
    pods = Pods("demo", "image", "claim", mount=str(volume))
    manifest = yaml.safe_load(yaml.safe_dump(job(*NASTY, pods=pods)))
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["/bin/sh", "-c", manifest["spec"]["entrypoint"]], cwd=tmp_path, env=environment, check=True)
    words = json.loads((volume / "words.json").read_text())
    assert words[:3] == ["-m", "launch.pipeline", "configs/demo.yaml"]
    assert words[-len(NASTY) :] == NASTY
    assert sorted(path.name for path in volume.iterdir()) == ["words.json"]


def test_the_driver_understands_the_flags() -> None:
    words = shlex.split(job()["spec"]["entrypoint"])
    flags = words[words.index("--launcher") :]
    parser = argparse.ArgumentParser()
    add_launcher_flags(parser)
    launcher = launcher_of(parser.parse_args(flags), {})
    assert (launcher.kind, launcher.nodes, launcher.ranks_per_node) == ("ray", 3, 8)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("name", "Demo"), ("name", "a" * 41), ("name", "a\n"), ("image", "a b"), ("image", ""), ("claim", "a_b"),
        ("secret", "-a"), ("config_map", "a..b"), ("namespace", "a.b"), ("mount", "work"), ("mount", "/a:b"),
        ("memory_per_node", "64 GB"), ("nodes", 0), ("gpus_per_node", 0), ("cpus_per_node", -1), ("retries", -1),
        ("deadline", 0),
    ],
)  # fmt: skip
def test_what_kubernetes_would_refuse_is_refused_by_flag(flag: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"--{flag.replace('_', '-')}"):
        Pods(**{"name": "demo", "image": "image", "claim": "claim"} | {flag: value})


ARGUMENTS = ["configs/My_Demo.yaml", "--image", "image:1", "training.steps=5", "--claim", "pdepot", "name=x"]


def test_dry_run_prints_the_manifest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*ARGUMENTS, "--dry-run"]) == 0
    manifest = yaml.safe_load(capsys.readouterr().out)
    check(manifest, "RayJob")
    assert manifest["metadata"]["generateName"] == "my-demo-"
    assert manifest["spec"]["entrypoint"].endswith("training.steps=5 name=x")
    assert run(["--cluster", "--image", "i", "--claim", "c", "--name", "team", "--nodes", "2", "--dry-run"]) == 0
    manifest = yaml.safe_load(capsys.readouterr().out)
    check(manifest, "RayCluster")
    assert (manifest["kind"], manifest["metadata"]["name"]) == ("RayCluster", "team")


@pytest.mark.parametrize("arguments", [ARGUMENTS[1:3] + ARGUMENTS[4:6], [*ARGUMENTS, "--cluster"]])
def test_a_job_has_a_configuration_and_a_cluster_has_none(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="CONFIG"):
        run(arguments)


DEMO = "configs/pretrain/demo.yaml"  # 16 samples a step, 8 at once: two ranks at most
FLAGS = ["--image", "image:1", "--claim", "pdepot", "--dry-run"]


def test_an_impossible_batch_costs_no_cluster(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert run([DEMO, *FLAGS, "--nodes", "2", "training.steps=5"]) == 0
    assert "SQLite" in capsys.readouterr().err
    assert run([DEMO, *FLAGS, "--nodes", "2", "--secret", "mlflow"]) == 0
    assert capsys.readouterr().err == ""
    for settings in ([], ["finetune=null"]):
        with pytest.raises(ConfigError, match="a batch that does not divide"):
            run([DEMO, *FLAGS, "--nodes", "2", "--gpus-per-node", "8", *settings])
    with pytest.raises(ConfigError, match="a batch that does not divide"):  # the fine-tuning's: it has its own
        run([DEMO, *FLAGS, "--nodes", "2", "--gpus-per-node", "8", "training.batch_size=128"])
    with pytest.raises(ConfigError, match="stepz"):
        run([DEMO, *FLAGS, "training.stepz=1"])


def examples() -> Iterator[list[str]]:
    """What follows `launch/pretrain.sh` where the documents, help texts and the epilog show several ranks."""
    for file in ("README.md", "docs/launching.md", "launch/pretrain.sh"):
        for line in (ROOT / file).read_text().splitlines():
            for words in re.findall(r"launch/pretrain\.sh (configs/[^`|#]*--nodes[^`|#]*)", line):
                yield shlex.split(words)
    yield shlex.split(_parser().epilog or "")[3:]


def test_examples_with_several_ranks_run_with_the_configurations_that_are_shipped() -> None:
    found = list(examples())
    assert len(found) >= 6
    for words in found:
        parser = argparse.ArgumentParser()
        parser.add_argument("--launcher", default="local")
        for flag in ("--nodes", "--gpus-per-node"):
            parser.add_argument(flag, type=int)
        options, rest = parser.parse_known_args(words)
        config = load(PretrainConfig, ROOT / words[0], [word for word in rest[1:] if "=" in word])
        kind = "ray" if options.launcher == "kubernetes" else options.launcher
        launcher = Launcher(kind, options.nodes or 1, options.gpus_per_node)
        finetuning = load_finetuning(config, (ROOT / words[0]).parent)
        for training in [config.training, *([finetuning[0].training] if finetuning else [])]:
            check_launch(training, launcher)


def test_the_example_of_the_help_makes_a_manifest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(_parser().epilog or "")
    assert words[:3] == ["example:", "bash", "launch/pretrain.sh"]
    at = words.index("--launcher")
    assert words[at + 1] == "kubernetes"  # which pretrain.sh takes for itself
    assert run([*words[3:at], *words[at + 2 :], "--dry-run"]) == 0
    check(yaml.safe_load(capsys.readouterr().out), "RayJob")


KUBECTL = """#!{python}
import json, sys
open({log!r}, "w").write(json.dumps([sys.argv[1:], sys.stdin.read()]))
sys.stderr.write("error: no matches for kind RayJob")
sys.exit({code})
"""


@pytest.mark.parametrize("code", [0, 1])
def test_kubectl_gets_the_manifest_on_its_standard_input(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    (tmp_path / "kubectl").write_text(KUBECTL.format(python=sys.executable, log=str(log), code=code))
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    if code:
        with pytest.raises(PdepotError, match=r"(?s)no matches for kind RayJob.*KubeRay operator.*--dry-run"):
            create(job())
    else:
        create(job())
    arguments, text = json.loads(log.read_text())
    assert arguments == ["create", "-f", "-"]
    assert yaml.safe_load(text) == job()


def test_without_kubectl_the_manifest_can_be_taken_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PdepotError, match=r"(?s)kubectl is not installed.*--dry-run"):
        create(job())
