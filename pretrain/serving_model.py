"""The operator as MLflow serves it: this file itself is stored in the model and run when it is loaded (no pickle).

It imports only the packages that are stored beside it, so a served model is the code that it was registered with.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from data_pipeline.base.errors import ConfigError
from data_pipeline.trajectory import FloatArray
from pretrain.model.operator import load_operator_files
from pretrain.rollout import rollout_block


class ServedOperator(PythonModel):  # type: ignore[misc]  # MLflow's classes are untyped here
    """A history in, a roll-out out, in physical units."""

    def load_context(self, context: Any) -> None:
        """Read the weights once, onto the GPU where there is one."""
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.operator = load_operator_files(Path(context.artifacts["weights"]).parent).to(self.device).eval()

    def predict(self, context: Any, model_input: np.ndarray, params: Mapping[str, Any] | None = None) -> FloatArray:
        """Roll the operator out.

        Args:
            context: MLflow's; not used.
            model_input: float32 (B, *space, T_in, C), physical units, channels in the operator's slots. Axes that the
                dataset lacks have one point, here and in the frames that come back.
            params: `dataset`, the dataset that the samples belong to (default: the operator's first), and `steps`,
                the number of frames to predict (default: T_out, one application of the operator). For an operator that
                is told PDE parameters, `parameters`: a JSON object of their values by name, the same for all samples;
                those left out are unknown.

        Returns:
            float32 (B, *space, steps, C), physical units.
        """
        config, asked = self.operator.config, params or {}
        row = self.operator.dataset_index(asked.get("dataset", config.datasets[0].name))
        history = torch.from_numpy(np.ascontiguousarray(model_input)).to(self.device)
        rows = torch.full((len(history),), row, device=self.device)
        steps = int(asked.get("steps", config.network.out_timesteps))
        values = self.operator.parameter_values(_json_object(asked.get("parameters", "{}")))
        block = rollout_block(self.operator, history, rows, steps, values.expand(len(history), -1))
        predicted: FloatArray = block.movedim(1, -2).contiguous().cpu().numpy()
        return predicted


def _json_object(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ConfigError("not a JSON object", key="parameters", found=text, expected='like {"viscosity": 1e-3}')
    return content


set_model(ServedOperator())
