# To compare with: one network for one scale.
_base_ = '../_base_/glyphs.py'
