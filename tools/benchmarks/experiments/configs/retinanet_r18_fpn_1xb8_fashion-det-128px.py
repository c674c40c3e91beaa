# To compare with: one network for one scale.
_base_ = '../../../../configs/_base_/fashion-det.py'
