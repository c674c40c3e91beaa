"""Measure, report and draw what networks do at several input sizes."""
from .early_exit import (
    auroc,
    cheapest,
    curve_of,
    decided_at,
    mean_gflops,
    shares_of,
)
from .fidelity import compare_boxes, compare_maps, compare_scores
from .fidelity_metric import FidelityMetric
from .held_out import check_held_out, held_out_images
from .measure import (
    Timer,
    compared,
    flops_of,
    measure_times,
    network_stride,
    spread_of,
    take_turns,
    timed,
)
from .pareto import front
from .plots import draw_cascade, draw_costs, draw_sizes, save_plot
from .report import report_cascade, report_fidelity, report_sizes
from .results_file import read_result, rows_of

__all__ = [
    'FidelityMetric', 'Timer', 'auroc', 'cheapest', 'check_held_out',
    'compare_boxes', 'compare_maps', 'compare_scores', 'compared',
    'curve_of', 'decided_at', 'draw_cascade', 'draw_costs', 'draw_sizes',
    'flops_of', 'front', 'held_out_images', 'mean_gflops', 'measure_times',
    'network_stride', 'read_result', 'report_cascade', 'report_fidelity',
    'report_sizes', 'rows_of', 'save_plot', 'shares_of', 'spread_of',
    'take_turns', 'timed'
]
