"""The operator as MLflow serves it: this file itself is stored in the model and run when it is loaded (no pickle).

It imports only the packages that are stored beside it, so a served model is the code that it was registered with.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

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
            model_input: float32 (B, *space, T_in, C), physical units, channels in the operator's slots.
            params: `dataset`, the dataset that the samples belong to (default: the operator's first), and `steps`,
                the number of frames to predict (default: T_out, one application of the operator).

        Returns:
            float32 (B, *space, steps, C), physical units.
        """
        config, asked = self.operator.config, params or {}
        row = self.operator.dataset_index(asked.get("dataset", config.datasets[0].name))
        history = torch.from_numpy(np.ascontiguousarray(model_input)).to(self.device)
        rows = torch.full((len(history),), row, device=self.device)
        block = rollout_block(self.operator, history, rows, int(asked.get("steps", config.network.out_timesteps)))
        predicted: FloatArray = block.movedim(1, -2).contiguous().cpu().numpy()
        return predicted


set_model(ServedOperator())
