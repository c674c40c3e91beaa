"""Run exported files with numpy and onnxruntime alone: no torch, no
OpenMMLab (docs/runtime.md)."""
from .latency import largest_within, latencies_ms, sizes_in
from .network_file import NetworkFile, files_in
from .predictor import Prediction, Predictor
from .resize import resize

__all__ = [
    'NetworkFile', 'Prediction', 'Predictor', 'files_in', 'largest_within',
    'latencies_ms', 'resize', 'sizes_in'
]
