"""What tasks ask of the nodes of a Ray cluster."""

from typing import Any

import pytest
import ray

from data_pipeline.workers import Needs, run_tasks


def test_a_gpu_task_asks_for_no_more_memory_than_a_node_with_gpus_has(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"CPU": 8.0, "memory": 8e9}, {"CPU": 1.0, "GPU": 1.0, "memory": 1e9}]
    asked: dict[str, Any] = {}
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 9.0, "GPU": 1.0})
    monkeypatch.setattr(ray, "remote", lambda **options: asked.update(options) or (lambda function: function))
    assert list(run_tasks(str, [], Needs(memory=4 * 10**9, gpus=1))) == []
    assert asked["memory"] == 10**9  # more than it has would wait for ever
    assert list(run_tasks(str, [], Needs(memory=4 * 10**9))) == []
    assert asked["memory"] == 4 * 10**9
