# Baseline: a single-scale network.
_base_ = '../../../../configs/_base_/fashion-det.py'
