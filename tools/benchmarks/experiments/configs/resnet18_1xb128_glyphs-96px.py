# To compare with: one network for one scale.
_base_ = '../../../../configs/_base_/glyphs.py'
