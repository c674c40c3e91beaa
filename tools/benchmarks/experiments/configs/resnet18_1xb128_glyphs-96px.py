# Baseline: a single-scale network.
_base_ = '../../../../configs/_base_/glyphs.py'
