"""The operator transformer, its sizes, and the operator around it that speaks physical units."""

from pretrain.model.config import NetworkConfig
from pretrain.model.dpot import Dpot
from pretrain.model.operator import DatasetScaling, Operator, OperatorConfig, load_operator_files, save_operator
from pretrain.model.plain import PlainDpot
from pretrain.model.reference import load_reference
from pretrain.model.sizes import SIZES

__all__ = [
    "SIZES",
    "DatasetScaling",
    "Dpot",
    "NetworkConfig",
    "Operator",
    "OperatorConfig",
    "PlainDpot",
    "load_operator_files",
    "load_reference",
    "save_operator",
]
